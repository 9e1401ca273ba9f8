"""What may be said of a request beside its scene."""

from collections.abc import Sequence
from typing import TypedDict

from lumosx_rt.reference.scenes.video_size import VideoSize

SAMPLING = ("steps", "shift", "guidance")


class Settings(TypedDict, total=False):
    """What may be said of a request; None, or unsaid, is the engine's default."""

    size: VideoSize | None
    steps: int | None
    guidance: float | None
    shift: float | None
    seeds: Sequence[int]
    negative_prompt: str | None
    schedule: str | None
    """A row of `SCHEDULES`; "released" by default."""

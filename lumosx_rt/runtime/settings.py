"""What may be said of a request beside its scene."""

from collections.abc import Iterable, Sequence
from typing import TypedDict

from lumosx_rt.reference.errors import BadInput
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


_ELSEWHERE = {  # what others call it
    "num_inference_steps": "steps",
    "sample_steps": "steps",
    "guidance_scale": "guidance",
    "guide_scale": "guidance",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "true_cfg_scale": "guidance",
    "flow_shift": "shift",
    "sample_shift": "shift",
    "seed": "seeds=[...]",
    "generator": "seeds=[...]",
    "num_videos_per_prompt": "seeds, one for each video",
    "scheduler": "schedule",
    "frames": "size=rt.VideoSize(frames, height, width)",
    "num_frames": "size=rt.VideoSize(frames, height, width)",
    "height": "size=rt.VideoSize(frames, height, width)",
    "width": "size=rt.VideoSize(frames, height, width)",
    "fps": "the engine's own rate",
    "prompt": "the first argument, a text or an rt.Scene",
    "image": "an rt.Scene with pictures",
    "images": "an rt.Scene with pictures",
    "reference_images": "an rt.Scene with pictures",
    "callback": "progress",
    "callback_on_step_end": "progress, or lumosx_rt.diffusers.LumosXPipeline",
    "output_type": "Video.pil(), .numpy() and .torch()",
}


def check_names(given: Iterable[str]) -> None:
    """Raise LumosXError for settings that there are not; names of other programs get a hint."""
    accepted = sorted(Settings.__optional_keys__)
    problems = [
        f"'{name}' is not known" + (f", here: {_ELSEWHERE[name]}" if name in _ELSEWHERE else "")
        for name in sorted(set(given) - set(accepted))
    ]
    if problems:
        raise BadInput(f"settings: {'; '.join(problems)}; accepted are {', '.join(accepted)}")

"""A request: a scene bound to a layout, and how it is sampled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.binding import Binding
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.schedules import Schedule
from lumosx_rt.reference.scenes.video_size import VideoSize


@dataclass(frozen=True)
class Request:
    """A scene, bound and ready to sample."""

    name: str
    size: VideoSize
    layout: SceneLayout
    binding: Binding
    seeds: tuple[int, ...]
    steps: int
    shift: float
    guidance: float

    def __post_init__(self) -> None:
        check_sampling(self.seeds, self.steps, self.shift, self.guidance)
        if len(self.seeds) > 1 and not self.layout.relational_visibility:
            raise LumosXError(
                f"layout {self.layout.key}: references see the video here, so seeds cannot share "
                "them; sample one seed at a time"
            )

    @property
    def schedule(self) -> Schedule:
        return Schedule.released(self.steps, self.shift)

    @property
    def together_key(self) -> tuple[object, ...]:
        """Requests with equal keys can go through the backend together."""
        layout = self.layout
        grid = (layout.video_frames, layout.height, layout.width)
        return (
            *(self.size.latent, grid, layout.references, layout.raster_tiling),
            *(len(self.seeds), self.steps, self.shift, self.guidance),
        )

    def without_words(self) -> "Request":
        """The same request with every picture bound to no word."""
        template = torch.zeros_like(self.binding.template)
        return replace(self, binding=replace(self.binding, template=template))

    def unrelated(self) -> "Request":
        """The same pictures without relations: each alone, bound to no word. A wrong answer."""
        layout = replace(self.layout, lone=self.layout.references, subjects=())
        return replace(self.without_words(), layout=layout)


def check_sampling(seeds: Sequence[int], steps: int, shift: float, guidance: float) -> None:
    """Raises LumosXError for settings that cannot be sampled."""
    if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= s < 1 << 63 for s in seeds):
        raise LumosXError(
            f"seeds: needs at least one, all different, 0 to 2^63 - 1, got {tuple(seeds)}"
        )
    if not math.isfinite(guidance):
        raise LumosXError(f"guidance: needs a finite number, got {guidance}")
    Schedule.released(steps, shift)

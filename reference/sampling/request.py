"""A request: a scene bound to a layout, and how it is sampled. Decided once, carried to the end."""

from dataclasses import dataclass, replace
from typing import Any

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.mechanisms.lumosx.mechanism import LUMOSX
from lumosx_rt.reference.mechanisms.mechanism import Binding, Branch, Control, Layout, Mechanism
from lumosx_rt.reference.numbers import real_number, whole_number, whole_numbers
from lumosx_rt.reference.sampling.branches import check_branches
from lumosx_rt.reference.sampling.memory_plan import MemoryPlan
from lumosx_rt.reference.sampling.schedules import RELEASED, TIMES, Schedule, schedule_of
from lumosx_rt.reference.scenes.prepared import PreparedScene
from lumosx_rt.reference.scenes.video_size import VideoSize

MAX_SEED = (1 << 63) - 1
MOST_SEEDS = 1024
MOST_SHIFT, MOST_GUIDANCE = 1000.0, 100.0  # far beyond what any schedule or guidance is for


@dataclass(frozen=True)
class ValidRequest:
    """A prepared scene and what is asked of it, checked; nothing is encoded yet."""

    scene: PreparedScene
    size: VideoSize
    layout: Layout
    seeds: tuple[int, ...]
    steps: int
    shift: float
    guidance: float
    negative_prompt: str
    schedule_name: str = RELEASED
    mechanism: Mechanism = LUMOSX
    plan: MemoryPlan | None = None
    """How it fits the limit of memory; None where there is no limit."""

    @property
    def name(self) -> str:
        return self.scene.name

    @property
    def branches(self) -> tuple[Branch, ...]:
        return self.mechanism.branches(self.guidance)

    def bound(self, binding: Binding) -> "Request":
        """Return the request with what the model reads of it."""
        return Request(
            self.name,
            self.size,
            self.layout,
            binding,
            self.seeds,
            self.steps,
            self.shift,
            self.guidance,
            schedule_name=self.schedule_name,
            mechanism=self.mechanism,
            scene=self.scene,
            plan=self.plan,
        )


@dataclass(frozen=True, repr=False)
class Request:
    """A scene, bound and ready to sample."""

    name: str
    size: VideoSize
    layout: Layout
    binding: Binding
    seeds: tuple[int, ...]
    steps: int
    shift: float
    guidance: float
    schedule_name: str = RELEASED
    mechanism: Mechanism = LUMOSX
    scene: PreparedScene | None = None
    """What it was bound from, where there is a scene."""
    plan: MemoryPlan | None = None
    """How it fits the limit of memory; None where there is no limit."""

    def __post_init__(self) -> None:
        plain = check_sampling(
            self.seeds, self.steps, self.shift, self.guidance, self.schedule_name
        )
        for name, value in vars(plain).items():
            object.__setattr__(self, name, value)
        check_branches(self.branches)
        if len(self.seeds) > 1 and not self.layout.seeds_share_references:
            raise BadInput(
                f"layout {self.layout.key}: references see the video here, so seeds cannot share "
                "them; sample one seed at a time"
            )

    def __repr__(self) -> str:
        size = f"{self.size.frames} frames of {self.size.width} x {self.size.height}"
        how = f"{self.steps} steps, guidance {self.guidance:g}, shift {self.shift:g}"
        return f"Request {self.name!r}: {size}, layout {self.layout.key}, seeds {self.seeds}, {how}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about its scene, and what of its texts is not read."""
        return (self.scene.warnings if self.scene else ()) + self.binding.warnings

    @property
    def schedule(self) -> Schedule:
        return schedule_of(self.schedule_name, self.steps, self.shift)

    @property
    def branches(self) -> tuple[Branch, ...]:
        return self.mechanism.branches(self.guidance)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, rows and columns of one video's latents."""
        channels, rows, columns = self.binding.references.shape[1:]
        return channels, self.layout.video_frames, rows, columns

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Requests with equal keys can go through the backend together."""
        how = (len(self.seeds), self.steps, self.shift, self.guidance, self.schedule_name)
        return self.mechanism.name, self.size.latent, self.layout.batch_key, *how

    def controls(self, config: Any) -> list[tuple[Control, "Request"]]:
        """Requests that are wrong on purpose: what a comparison must tell apart.

        config: the sizes of the model.
        """
        found = self.mechanism.controls(self.layout, self.binding, config)
        return [(c, replace(self, layout=c.layout, binding=c.binding)) for c in found]


@dataclass(frozen=True)
class Sampling:
    """How a request is sampled, in plain numbers."""

    seeds: tuple[int, ...]
    steps: int
    shift: float
    guidance: float


def check_sampling(
    seeds: Any, steps: Any, shift: Any, guidance: Any, schedule: Any = RELEASED
) -> Sampling:
    """Make numbers of any kind plain. Raises LumosXError for settings that cannot be sampled."""
    plain = Sampling(
        whole_numbers(seeds, "seeds", 0, MAX_SEED, MOST_SEEDS),
        whole_number(steps, "steps", 1, TIMES),
        real_number(shift, "shift", 0, MOST_SHIFT),
        real_number(guidance, "guidance", -MOST_GUIDANCE, MOST_GUIDANCE),
    )
    if not plain.seeds or len(set(plain.seeds)) != len(plain.seeds):
        raise BadInput(f"seeds: needs at least one, all different, got {plain.seeds}")
    schedule_of(schedule, plain.steps, plain.shift)
    return plain

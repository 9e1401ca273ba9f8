"""What a training run is: the model, its stages, and every choice that changes the result.

A recipe is a Python function that returns a `Recipe`; the paper's two phases (single subject, then
mixed) are two stages that name different sources. Nothing here touches a tensor.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import BadInput, LumosXError, listing
from lumosx_rt.reference.kinds import check_fields
from lumosx_rt.reference.numbers import real_number, whole_number
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize

Relations = Literal["full", "lone", "lone-interleaved"]
TimeSampling = Literal["uniform", "integer", "logit-normal"]
TimeShift = Literal["dynamic", "fixed"]
OptimizerName = Literal["muon", "adamw"]

_FREE = ("save_every", "log_every", "components")  # may change between two parts of one run


@runtime_checkable
class Source(Protocol):
    """Scenes with their clips, by number: the same number is always the same example."""

    @property
    def name(self) -> str:
        """One plain file name: its latents are kept under it."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever an example changes."""

    def __len__(self) -> int: ...

    def item(self, i: int) -> tuple[Scene, NDArray[np.uint8]]:
        """A scene and its clip, uint8 [frames, height, width, 3] in the size to be trained."""


@runtime_checkable
class AugmentedSource(Source, Protocol):
    """A source that makes other pictures of its references itself; `augment` does for others."""

    def augmented(self, i: int, variant: int) -> Scene:
        """Scene i with other pictures, the same words in the same order; variant from 1."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """How training times are drawn (docs/spec.md#training)."""

    sampling: TimeSampling = "uniform"
    """Uniform in [0, 1000) as released, its integer part, or 1000 * sigmoid(normal)."""
    shift: TimeShift | None = None
    """`flow.shift_time`, by the size of the video or by `scale` alone."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training on one source."""

    name: str
    steps: int
    data: Source
    streams: int = 6
    """Scenes a step."""
    seeds: int = 4
    """Noises of each scene: its references are computed once for all of them."""
    learning_rate: float = 2e-3
    augmented: float = 0.0
    """Probability that a scene is shown an augmented variant of its references."""
    latent_frames: int | None = None
    """Train on the first latent frames only: exact, because the VAE is causal."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run. Two runs of one recipe on one machine are equal bit for bit."""

    model: LumosXConfig
    size: VideoSize
    stages: tuple[Stage, ...]
    components: Path | None = None
    """A bundle with the text encoder, tokenizer and VAE; needed where latents are not cached."""
    start_from: Path | None = None
    """Weights to start from: any checkpoint of LumosX or Wan2.1 (same keys); else random ones."""
    seed: int = 0
    text_dropout: float = 0.1
    """Scenes that get the negative prompt; their references and word positions stay
    (docs/spec.md#guidance)."""
    times: Times = field(default_factory=Times)
    optimizer: OptimizerName = "muon"
    """Muon for the blocks' matrices and AdamW for the rest, or AdamW for all."""
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    warm_up: int = 50
    """Steps of linear warm-up."""
    decay: float = 0.25
    """The last fraction of all steps, over which the learning rate falls linearly to 0."""
    ema_decay: float = 0.99
    """Of the averaged weights; warmed up as (1 + step) / (10 + step)."""
    bf16: bool = False
    """The blocks' linears and attention in bfloat16 (autocast); weights stay float32."""
    checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    variants: int = 0
    """Augmented variants of each scene in the latent cache."""
    augment_strength: float = 1.0
    relational_positions: bool = True
    relational_visibility: bool = True
    """False: references see the video, so every noise gets a stream of its own."""
    relations: Relations = "full"
    """"lone": every reference its own slot; "lone-interleaved": and no group stands together."""
    words: bool = True
    """Whether references are biased towards their words (MCAM)."""
    save_every: int = 200
    log_every: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "stages", tuple(self.stages))
        problems = [*_out_of_range(self, _RECIPE_RANGES), *_foreign(self), *_foreign(self.times)]
        problems += _out_of_range(self.times, {"scale": (1e-3, 1e3)})
        if not self.stages:
            problems.append("there are no stages; give at least one")
        for stage in self.stages:
            problems += [f"stage '{stage.name}': {p}" for p in _out_of_range(stage, _STAGE_RANGES)]
            if not len(stage.data):
                problems.append(f"stage '{stage.name}': source '{stage.data.name}' has no examples")
            if stage.augmented and not self.variants:
                problems.append(
                    f"stage '{stage.name}': augmented is {stage.augmented}, but the cache holds no "
                    "variants; give the recipe variants=1 or more"
                )
            frames = self.size.latent[0]
            if stage.latent_frames is not None and not 1 <= stage.latent_frames <= frames:
                problems.append(
                    f"stage '{stage.name}': latent_frames must be 1 to {frames} (a clip of "
                    f"{self.size.frames} frames), got {stage.latent_frames}"
                )
        fingerprints: dict[str, str] = {}
        for source in (stage.data for stage in self.stages):
            if fingerprints.setdefault(source.name, source.fingerprint) != source.fingerprint:
                problems.append(f"two sources have the name '{source.name}'; rename one")
        if problems:
            raise BadInput(listing("recipe", problems))

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def sources(self) -> dict[str, Source]:
        """The sources of all stages by name."""
        return {stage.data.name: stage.data for stage in self.stages}

    def stage_at(self, step: int) -> Stage:
        """Return the stage of a step, counted from 0 over all stages."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise BadInput(f"recipe: there are only {self.steps} steps")

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: its stage's, times warm-up, times the final decay."""
        rising = min(1.0, (step + 1) / max(self.warm_up, 1))
        falling = min(1.0, (self.steps - step) / max(self.decay * self.steps, 1.0))
        return self.stage_at(step).learning_rate * rising * falling

    def describe(self) -> dict[str, Any]:
        """Return all that changes the result, as JSON: a run resumes only where it is equal."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _FREE}
        plain |= {name: asdict(plain[name]) for name in ("model", "size", "times")}
        plain["start_from"] = None if self.start_from is None else str(self.start_from)
        plain["stages"] = [
            {f.name: getattr(stage, f.name) for f in fields(Stage) if f.name != "data"}
            | {"data": [stage.data.name, stage.data.fingerprint]}
            for stage in self.stages
        ]
        return plain


_RECIPE_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "text_dropout": (0, 1),
    "weight_decay": (0, 1),
    "grad_clip": (1e-6, 1e6),
    "warm_up": (0, 2**31),
    "decay": (0, 1),
    "ema_decay": (0, 1),
    "variants": (0, 1000),
    "augment_strength": (0, 1),
    "save_every": (1, 2**31),
    "log_every": (1, 2**31),
}
_STAGE_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 2**31),
    "streams": (1, 4096),
    "seeds": (1, 4096),
    "learning_rate": (1e-12, 10),
    "augmented": (0, 1),
}
_INTEGERS = {"seed", "warm_up", "variants", "save_every", "log_every", "steps", "streams", "seeds"}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "optimizer": get_args(OptimizerName),
    "relations": get_args(Relations),
    "sampling": get_args(TimeSampling),
    "shift": (None, *get_args(TimeShift)),
}


def _out_of_range(value: object, ranges: dict[str, tuple[float, float]]) -> list[str]:
    """List the numbers that are none, or outside their range; others become plain ones."""
    problems = []
    for name, (low, high) in ranges.items():
        given = getattr(value, name)
        try:
            found = (
                whole_number(given, name, int(low), int(high))
                if name in _INTEGERS
                else real_number(given, name, low, high)
            )
        except LumosXError:
            kind = "an integer " if name in _INTEGERS else ""
            shown = f"{given!r:.60}"
            problems.append(f"{name} must be {kind}from {low:g} to {high:g}, got {shown}")
        else:
            object.__setattr__(value, name, found if type(given) not in (int, float) else given)
    return problems


def _foreign(value: object) -> list[str]:
    return [
        f"{name} '{getattr(value, name)}'; accepted are {', '.join(map(str, accepted))}"
        for name, accepted in _CHOICES.items()
        if hasattr(value, name) and getattr(value, name) not in accepted
    ]

"""What a model is given: named tensors with named axes, and the limits of every axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.mechanisms.lumosx.mechanism import LUMOSX
from lumosx_rt.reference.mechanisms.mechanism import Axes, Layout, Mechanism

MAX_STREAMS, MAX_SEEDS = 64, 64
OUTPUT = "velocity"
_EVERY: dict[str, Axes] = {
    "latents": ("streams", "seeds", "channels", "frames", "2*height", "2*width"),
    "time": ("streams",),
}


def axes_of(mechanism: Mechanism) -> dict[str, Axes]:
    """Return the axes of every input of a graph, by name and in order."""
    return _EVERY | dict(mechanism.axes)


def limits_of(mechanism: Mechanism) -> dict[str, tuple[int, int]]:
    """Least and most of every dynamic axis."""
    return {"streams": (1, MAX_STREAMS), "seeds": (1, MAX_SEEDS)} | dict(mechanism.limits)


MECHANISMS: dict[str, Mechanism] = {LUMOSX.name: LUMOSX}
"""Every mechanism by its name: one row each."""
DEFAULT = LUMOSX
"""The mechanism of whatever names none."""
AXES, LIMITS = axes_of(LUMOSX), limits_of(LUMOSX)
INPUTS = tuple(AXES)


@dataclass(frozen=True)
class Inputs:
    """What stays the same over the steps of one call: everything but latents and time.

    tensors: by name, as the mechanism's `axes` say. shape: of the latents, [streams, seeds,
    channels, frames, rows, columns]. A stream is one (request, branch).
    """

    tensors: Mapping[str, Tensor]
    shape: tuple[int, ...]
    mechanism: Mechanism = LUMOSX

    def feed(self, latents: Tensor, time: Tensor) -> dict[str, Tensor]:
        """All inputs of a graph, by name and in order; time: int64 [streams]."""
        return {"latents": latents, "time": time, **self.tensors}

    def arguments(self, device: torch.device | str = "cpu") -> tuple[Any, ...]:
        """Return what the model takes after latents and time."""
        return self.mechanism.arguments({n: x.to(device) for n, x in self.tensors.items()})

    def changed(self, **tensors: Tensor) -> "Inputs":
        """Return the same inputs with other tensors of some names."""
        return Inputs({**self.tensors, **tensors}, self.shape, self.mechanism)


class Denoiser(Protocol):
    """A backend bound to one call's inputs."""

    def __call__(self, latents: Tensor, time: int) -> Tensor:
        """Velocity of latents [streams, seeds, channels, frames, rows, columns], on the CPU.

        The result may be overwritten by the next call.
        """


class Backend(Protocol):
    """A model that runs somewhere: bound to one call's inputs, then called once per step."""

    def bind(self, inputs: Inputs) -> Denoiser: ...

    def describe(self) -> dict[str, str]:
        """Return what runs where, for reports."""


def random_inputs(
    config: LumosXConfig,
    layouts: Sequence[Layout],
    seeds: int,
    seed: int = 0,
    mechanism: Mechanism = LUMOSX,
) -> tuple[Tensor, Tensor, Inputs]:
    """Draw latents, times int64 [streams] and inputs for streams of these layouts."""
    first, streams = layouts[0], len(layouts)
    draw = torch.Generator("cpu").manual_seed(seed)
    shape = (streams, seeds, config.in_dim, first.video_frames, 2 * first.height, 2 * first.width)
    latents = torch.randn(shape, generator=draw)
    time = torch.randint(1, 1000, (streams,), generator=draw)
    return latents, time, Inputs(mechanism.random(config, layouts, draw), shape, mechanism)


def check_shapes(
    shapes: Mapping[str, Sequence[int]], limits: Mapping[str, Sequence[int]] = LIMITS
) -> None:
    """Raise LumosXError where shapes contradict `AXES`: compiled code trusts its inputs.

    shapes: of every input, by its name. An axis must have one size everywhere, within `limits`
    (least and most).
    """
    sizes: dict[str, int] = {}
    for name, axes in AXES.items():
        shape = tuple(shapes[name])
        if len(shape) != len(axes):
            raise BadInput(f"{name}: got shape {shape}, its axes are {axes}")
        for axis, found in zip(axes, shape, strict=True):
            factor, _, bare = str(axis).rpartition("*")
            size, rest = divmod(found, int(factor or 1))
            least, most = limits.get(bare, (0, found))
            known = axis if isinstance(axis, int) else sizes.setdefault(bare, size)
            if rest or size != known or not least <= size <= most:
                raise BadInput(f"{name}: got shape {shape}, {axis} does not fit ({bare}: {known})")

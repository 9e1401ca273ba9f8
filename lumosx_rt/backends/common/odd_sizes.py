"""Videos of an odd number of latent rows or columns, for graphs that know even ones.

The model pads them with one zero row or column and drops it again (docs/spec.md#tokens). Done
outside of the graph it is the same numbers: whatever is zero there is zero here.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor
from torch.nn import functional

from lumosx_rt.reference.sampling.inputs import Denoiser, Inputs, axes_of

Bind = Callable[[Any, Inputs], Denoiser]


def takes_odd_sizes(bind: Bind) -> Bind:
    """Let a backend's `bind`, which knows even sizes, take odd ones."""

    @wraps(bind)
    def bind_any(self: Any, inputs: Inputs) -> Denoiser:
        rows, columns = inputs.shape[-2:]
        if not (rows % 2 or columns % 2):
            return bind(self, inputs)
        run = bind(self, even(inputs))

        def denoise(latents: Tensor, time: int) -> Tensor:
            return run(padded(latents), time)[..., :rows, :columns]

        return denoise

    return bind_any


def even(inputs: Inputs) -> Inputs:
    """Return inputs whose rows and columns are even, padded with zeros."""
    axes = axes_of(inputs.mechanism)
    odd = [name for name in inputs.tensors if axes[name][-2:] == ("2*height", "2*width")]
    longer = {name: padded(inputs.tensors[name]) for name in odd}
    *others, rows, columns = inputs.shape
    shape = (*others, rows + rows % 2, columns + columns % 2)
    return replace(inputs.changed(**longer), shape=shape)


def padded(frames: Tensor) -> Tensor:
    """Add a zero row below, and a zero column to the right, where there is an odd number."""
    rows, columns = frames.shape[-2:]
    return functional.pad(frames, (0, columns % 2, 0, rows % 2))

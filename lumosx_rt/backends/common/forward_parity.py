"""One forward pass of a backend against the reference, on small awkward layouts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.backends.common.simulated import SimulatedBackend
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.formats import ROUNDED_GATE, format_of
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import DEFAULT, Backend, Inputs, random_inputs

# One forward pass each: no references, one group, unequal groups in two streams, several seeds.
FORWARD_CASES: tuple[tuple[tuple[str, ...], int], ...] = (
    (("2x8x14+0+-",), 1),
    (("2x8x14+1+2",), 1),
    (("2x8x14+0+3",), 2),
    (("3x4x9+1+1.3", "3x4x9+2+3"), 2),
)


def forward_parity(
    model: LumosX,
    backend: Backend | Callable[[], Backend],
    precision: str = "fp32",
    document: Calibration | None = None,
) -> list[dict[str, Any]]:
    """Compare one forward pass of a backend with the reference on small awkward layouts.

    model: the reference in float32. backend: or what makes it, called when nothing but the model is
    in memory any more. Each result has its `relative_error` and the `gate` it must not exceed: of
    its format, or by what the model itself errs in that precision (`ROUNDED_GATE`). document:
    the scales of "fp8".
    """
    calls, gates = [_forward_case(model, i) for i in range(len(FORWARD_CASES))], []
    fixed = format_of(precision).forward_gate
    rounded = None if fixed else rounded_backend(model, document)
    for bound, latents, moment, expected in calls:
        gates.append(
            fixed
            if rounded is None
            else ROUNDED_GATE * relative_error(rounded.bind(bound)(latents, moment), expected)
        )
    del rounded
    made = backend() if callable(backend) else backend
    results = []
    for (keys, seeds), call, gate in zip(FORWARD_CASES, calls, gates, strict=True):
        bound, latents, moment, expected = call
        error = relative_error(made.bind(bound)(latents, moment), expected)
        results.append(
            {
                "layout": " and ".join(keys),
                "streams": len(keys),
                "seeds": seeds,
                "relative_error": error,
                "gate": gate,
            }
        )
    return results


def _forward_case(model: LumosX, index: int) -> tuple[Inputs, Tensor, int, Tensor]:
    """A case's inputs, latents and time, and what the reference makes of them."""
    keys, seeds = FORWARD_CASES[index]
    layouts = [DEFAULT.layout_from_key(key) for key in keys]
    latents, time, inputs = random_inputs(model.config, layouts, seeds, seed=index)
    bound = inputs.changed(**inputs.mechanism.amplified(inputs.tensors))
    moment = int(time[0])  # streams of a call share it
    return bound, latents, moment, EagerBackend(model).bind(bound)(latents, moment).clone()


def rounded_backend(model: LumosX, document: Calibration | None) -> Backend:
    """Return the reference, rounded as an engine is: the yardstick where a format has no gate."""
    if document is not None:
        return SimulatedBackend(model, document)
    return EagerBackend(recast(model, torch.bfloat16))

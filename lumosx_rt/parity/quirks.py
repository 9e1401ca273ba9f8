"""The quirks of SPEC that released weights depend on, undone one at a time on an engine.

    effect      |engine with the quirk undone - engine| / |engine|, one guided pass
    allowed     how far the engine may be from the reference in such a pass
    told apart  effect > allowed: had the engine lost the quirk, the comparison would have failed

A scene can be too small to show one (no tile beside the frame's edge, say): it is reported so.
"""

import math
from dataclasses import replace
from typing import Any

from lumosx_rt.calibration.formats import ROUNDED_GATE
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.denoise import calls_of
from lumosx_rt.reference.sampling.inputs import Backend, Inputs
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.solvers import initial_noise

GUIDANCE = 2.0  # any but 1: both branches run
TIME = "times are cut to whole numbers"


def check_quirks(
    engine: Backend, reference: Backend, request: Request, head_dim: int, allowed: float | Backend
) -> list[dict[str, Any]]:
    """Return what undoing each quirk changes in one guided pass of the request's first seed.

    allowed: the engine's relative error that a comparison accepts, or what errs itself, of which
    `ROUNDED_GATE` times as much is.
    """
    request = replace(request, guidance=GUIDANCE, seeds=request.seeds[:1])
    (quiet,) = calls_of([request], head_dim)
    right = quiet.changed(**request.mechanism.amplified(quiet.tensors))
    latents = initial_noise(request.seeds[0], request.latent_shape).expand(right.shape)
    times = request.schedule.times
    time = int(times[len(times) // 2])
    expected = reference.bind(right)(latents, time).clone()
    if not isinstance(allowed, float):
        allowed = ROUNDED_GATE * relative_error(allowed.bind(right)(latents, time), expected)
    mine = engine.bind(right)(latents, time).clone()

    def told(name: str, spec: str, inputs: Inputs | None, moment: int) -> dict[str, Any]:
        found: dict[str, Any] = {"quirk": name, "spec": spec, "effect": None, "told_apart": None}
        try:
            if inputs is not None:
                effect = relative_error(engine.bind(inputs)(latents, moment), mine)
                if math.isfinite(effect):
                    found |= {"effect": effect, "told_apart": effect > allowed}
                else:
                    found["reason"] = "the engine's answers are not finite"
        except LumosXError as error:
            found["reason"] = str(error)
        return found

    results = []
    for quirk in request.mechanism.quirks:
        undone = quirk.undone(request.layout, right.tensors, head_dim)
        inputs = None if undone is None else right.changed(**undone)
        results.append(told(quirk.name, quirk.spec, inputs, time))
    results.append(told(TIME, "7", right, time + 1))
    error = relative_error(mine, expected)
    about = {"allowed": allowed, "error": error if math.isfinite(error) else None}
    return [result | about for result in results]

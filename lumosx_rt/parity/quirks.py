"""The quirks of docs/spec.md that released weights depend on, undone one at a time on an engine.

    effect      |engine with the quirk undone - engine| / |engine|, one guided pass
    allowed     how far the engine may be from the reference in such a pass
    told apart  effect > allowed: had the engine lost the quirk, the comparison would have failed

A scene can be too small to show one (no tile beside the frame's edge, say): it is reported so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lumosx_rt.backends.common.gates import ROUNDED_GATE
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.inputs import Backend, Inputs, guided_inputs
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.solvers import initial_noise

Undone = Callable[[Request, Inputs, int], Inputs | None]


@dataclass(frozen=True)
class Quirk:
    """One of them. undone: inputs as they would be without it, given the right ones and the size of
    a head; None where the request does not show it."""

    name: str
    spec: str
    """The section of docs/spec.md."""
    undone: Undone


def _layout(**changes: Any) -> Undone:
    def undone(request: Request, inputs: Inputs, head_dim: int) -> Inputs | None:
        if not request.layout.references:
            return None
        layout = replace(request.layout, **changes)
        return guided_inputs(layout, request.binding, 1, head_dim)

    return undone


def _undiluted(request: Request, inputs: Inputs, head_dim: int) -> Inputs | None:
    pool = inputs.structure.tile_pool
    shares = pool / pool.sum((1, 2), keepdim=True)
    return replace(inputs, structure=inputs.structure._replace(tile_pool=shares))


def _null_branch(field: str) -> Undone:
    """The negative prompt's stream without references' pictures or words."""

    def undone(request: Request, inputs: Inputs, head_dim: int) -> Inputs | None:
        value = getattr(inputs, field).clone()
        value[1] = 0
        return replace(inputs, **{field: value})

    return undone


def _unbound(request: Request, inputs: Inputs, head_dim: int) -> Inputs | None:
    return replace(inputs, template=torch.zeros_like(inputs.template))


def _flat_text(request: Request, inputs: Inputs, head_dim: int) -> Inputs | None:
    """Padding beyond the prompt repeats its last token instead of zeros."""
    used = inputs.text.abs().sum(2) > 0
    if bool(used.all()):
        return None
    text = inputs.text.clone()
    for stream, real in zip(text, used, strict=True):
        stream[~real] = stream[real][-1]
    return replace(inputs, text=text)


QUIRKS = (
    Quirk("references stand on a diagonal behind the video, a person's in one slot", "4.2",
          _layout(relational_positions=False)),
    Quirk("references see their group alone", "4.1", _layout(relational_visibility=False)),
    Quirk("pictures are bound to their words", "4.3", _unbound),
    Quirk("a tile's mean counts cells beside the frame as zeros", "4.3 M1", _undiluted),
    Quirk("tiles are laid over the frame in raster order", "4.3 M2", _layout(raster_tiling=False)),
    Quirk("the null branch keeps the references", "7", _null_branch("references")),
    Quirk("the null branch keeps the words' masks", "7", _null_branch("template")),
    Quirk("the text is padded by zeros, which are attended to", "3", _flat_text),
)  # fmt: skip
LOUD = 8.0  # as loudly words are bound, so that a lost tile shows even in random weights
TIME = "times are cut to whole numbers"


def check_quirks(
    engine: Backend, reference: Backend, request: Request, head_dim: int, allowed: float | Backend
) -> list[dict[str, Any]]:
    """What undoing each quirk changes in one guided pass of the request's first seed.

    allowed: the engine's relative error that a comparison accepts, or what errs itself, of which
    `ROUNDED_GATE` times as much is.
    """
    loud = replace(request.binding, template=LOUD * request.binding.template)
    request = replace(request, binding=loud)
    channels, rows, columns = request.binding.references.shape[1:]
    shape = (channels, request.layout.video_frames, rows, columns)
    noise = initial_noise(request.seeds[0], shape)
    latents = noise.expand(2, 1, *shape)
    times = request.schedule.times
    time = int(times[len(times) // 2])
    right = guided_inputs(request.layout, request.binding, 1, head_dim)
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

    results = [
        told(quirk.name, quirk.spec, quirk.undone(request, right, head_dim), time)
        for quirk in QUIRKS
    ]
    results.append(told(TIME, "7", right, time + 1))
    error = relative_error(mine, expected)
    about = {"allowed": allowed, "error": error if math.isfinite(error) else None}
    return [result | about for result in results]

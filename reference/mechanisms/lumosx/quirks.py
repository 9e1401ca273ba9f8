"""The quirks that released weights depend on, each as the inputs it would be undone in.

A quirk is undone on the named tensors of one guided pass: stream 0 reads the prompt, stream 1 the
negative prompt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import structure_of

Tensors = Mapping[str, Tensor]
Undone = Callable[[SceneLayout, Tensors, int], dict[str, Tensor] | None]


@dataclass(frozen=True)
class Quirk:
    """A quirk and how to undo it.

    undone: (layout, right tensors, head_dim) -> the tensors that differ without it; None where the
    layout does not show it.
    """

    name: str
    spec: str
    """Section of SPEC."""
    undone: Undone


def _layout(**changes: Any) -> Undone:
    def undone(layout: SceneLayout, right: Tensors, head_dim: int) -> dict[str, Tensor] | None:
        if not layout.references:
            return None
        streams = right["text"].shape[0]
        return structure_of([replace(layout, **changes)] * streams, head_dim)._asdict()

    return undone


def _undiluted(layout: SceneLayout, right: Tensors, head_dim: int) -> dict[str, Tensor]:
    pool = right["tile_pool"]
    return {"tile_pool": pool / pool.sum((1, 2), keepdim=True)}


def _null_branch(name: str) -> Undone:
    """Return the negative prompt's stream without references' pictures or words."""

    def undone(layout: SceneLayout, right: Tensors, head_dim: int) -> dict[str, Tensor]:
        value = right[name].clone()
        value[1] = 0
        return {name: value}

    return undone


def _unbound(layout: SceneLayout, right: Tensors, head_dim: int) -> dict[str, Tensor]:
    return {"template": torch.zeros_like(right["template"])}


def _flat_text(layout: SceneLayout, right: Tensors, head_dim: int) -> dict[str, Tensor] | None:
    """Padding beyond the prompt repeats its last token instead of zeros."""
    used = right["text"].abs().sum(2) > 0
    if bool(used.all()):
        return None
    text = right["text"].clone()
    for stream, real in zip(text, used, strict=True):
        stream[~real] = stream[real][-1]
    return {"text": text}


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

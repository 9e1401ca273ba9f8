"""LumosX as a value: faces bound to attributes by relational positions, a mask and words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.reference.mechanisms.lumosx.binding import Binding, bind
from lumosx_rt.reference.mechanisms.lumosx.layout import ROPE_TABLE, SceneLayout, layout_of
from lumosx_rt.reference.mechanisms.lumosx.quirks import QUIRKS
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure, structure_of
from lumosx_rt.reference.mechanisms.mechanism import Axes, Branch, Control, Mechanism

MAX_REFERENCES = 64
AXES: dict[str, Axes] = {
    "text": ("streams", "text_len", "text_dim"),
    "references": ("streams", "references", "channels", "2*height", "2*width"),
    "template": ("streams", "references", "text_len"),
    "rope_video": (2, "frames", "height", "width", "pairs"),
    "rope_references": (2, "streams", "references", "height", "width", "pairs"),
    "tile_pool": ("tiles", "height", "width"),
    "bias_tiles": ("height", "width"),
    "group_index": ("streams", "groups", "members"),
    "group_mask": ("streams", "groups", "members"),
    "group_inverse": ("streams", "references"),
}
LIMITS = {
    "frames": (1, ROPE_TABLE),
    "height": (1, ROPE_TABLE),
    "width": (1, ROPE_TABLE),
    "references": (0, MAX_REFERENCES),
    "groups": (1, MAX_REFERENCES),
    "members": (1, ROPE_TABLE + MAX_REFERENCES),  # with visibility off, a group holds every frame
    "tiles": (1, (ROPE_TABLE // 8) ** 2),
}


def inputs_of(
    layouts: Sequence[SceneLayout],
    bindings: Sequence[Binding],
    prompts: Sequence[str],
    head_dim: int,
) -> dict[str, Tensor]:
    """Stack what each stream reads: one layout, binding and prompt a stream.

    Returns the tensors of `AXES`, in their order.
    """
    structure = structure_of(layouts, head_dim)
    return {
        "text": torch.stack(
            [getattr(b, prompt) for b, prompt in zip(bindings, prompts, strict=True)]
        ),
        "references": torch.stack([binding.references for binding in bindings]),
        "template": torch.stack([binding.template for binding in bindings]),
        **structure._asdict(),
    }


def random_of(
    config: Any, layouts: Sequence[SceneLayout], draw: torch.Generator
) -> dict[str, Tensor]:
    """Random texts, references and templates for streams of these layouts.

    config: has the model's text_len, text_dim, in_dim and head_dim.
    """
    first, streams = layouts[0], len(layouts)
    size = (2 * first.height, 2 * first.width)
    return {
        "text": torch.randn(streams, config.text_len, config.text_dim, generator=draw),
        "references": torch.randn(streams, first.references, config.in_dim, *size, generator=draw),
        "template": torch.randn(streams, first.references, config.text_len, generator=draw),
        **structure_of(layouts, config.head_dim)._asdict(),
    }


def arguments_of(tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """Return what the model takes after latents and time: text, references, template, structure."""
    structure = Structure(*(tensors[name] for name in Structure._fields))
    return tensors["text"], tensors["references"], tensors["template"], structure


def guidance_branches(guidance: float) -> tuple[Branch, ...]:
    """Classifier-free guidance: the prompt's branch, and the null one unless guidance is 1.

    The null branch keeps the references and the word template (docs/spec.md#guidance).
    """
    if guidance == 1.0:
        return (Branch(1.0, "text"),)
    return (Branch(guidance, "text"), Branch(1.0 - guidance, "null_text"))


def controls_of(layout: SceneLayout, binding: Binding, config: Any) -> list[Control]:
    """Wrong answers: every picture bound to no word; and no relations, each picture alone.

    config: has the model's mcam_ratio; words do nothing where it is 0.
    """
    silent = replace(binding, template=torch.zeros_like(binding.template))
    found = []
    if config.mcam_ratio and binding.template.any():
        found.append(Control("words", layout, silent, exceeds_gate=False))
    if any(size > 1 for size in layout.subjects):
        alone = replace(layout, lone=layout.references, subjects=())
        found.append(Control("relations", alone, silent, exceeds_gate=True))
    return found


def amplified(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loud words, so that a lost tile shows even in random weights."""
    return {"template": 8 * tensors["template"]}


LUMOSX = Mechanism(
    name="lumosx",
    axes=AXES,
    limits=LIMITS,
    layout=layout_of,
    layout_from_key=SceneLayout.from_key,
    bind=bind,
    inputs=inputs_of,
    random=random_of,
    arguments=arguments_of,
    branches=guidance_branches,
    controls=controls_of,
    amplified=amplified,
    quirks=QUIRKS,
)

"""Values of the program that keep a name in its graph, so that the graph can be cut there.

    video.0, video.1, video.last    the video's residual stream before and after the first block,
                                    and before the head
    condition.1                     the references' after the first block
    blocks.N.keys, blocks.N.values  of the references, which the video attends to
    blocks.N.video.q (.k, .v)       of the video, which groups of references are gathered from

While a model is traced under `marked`, a node stands behind each of them that does nothing;
`name_marked` takes the nodes away and leaves their names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.reference.backbones.ops import (
    QKV,
    Attended,
    NormModulate,
    Ops,
    SelfAttention,
    norm_modulate,
)
from lumosx_rt.reference.backbones.wan import LumosX, Residual

EMBEDDED, FIRST, LAST, CONDITION = "video.0", "video.1", "video.last", "condition.1"
_DOMAIN, _KIND = "lumosx", "Mark"


def keys_of(block: int) -> tuple[str, str]:
    return f"blocks.{block}.keys", f"blocks.{block}.values"


def video_of(block: int) -> tuple[str, str, str]:
    return f"blocks.{block}.video.q", f"blocks.{block}.video.k", f"blocks.{block}.video.v"


@contextmanager
def marked(model: LumosX, ops: Ops) -> Iterator[Ops]:
    """The operations to trace a model with, which mark what they are given; so does the model."""

    def self_attention(call: SelfAttention) -> Attended:
        block = int(call.site.split(".")[1])
        q, k, v = (
            None if x is None else mark(x, name)
            for x, name in zip(call.video, video_of(block), strict=True)
        )
        assert k is not None and v is not None
        keys, values = (
            mark(x, name) for x, name in zip(call.condition[1:], keys_of(block), strict=True)
        )
        condition = call.condition._replace(k=keys, v=values)
        return ops.self_attention(call._replace(video=QKV(q, k, v), condition=condition))

    def entered(names: tuple[str, ...]) -> Any:
        """Make a hook for a module whose first arguments are residual streams."""

        def hook(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            states = zip(given, names, strict=False)
            return (*(_settled(state, name) for state, name in states), *given[len(names) :])

        return hook

    first, *others = model.blocks
    places: list[tuple[Any, tuple[str, ...]]] = [(first, (EMBEDDED,)), (model.head, (LAST,))]
    places += [(second, (FIRST, CONDITION)) for second in others[:1]]
    handles = [module.register_forward_pre_hook(entered(names)) for module, names in places]
    try:
        yield replace(ops, self_attention=self_attention)
    finally:
        for handle in handles:
            handle.remove()


def mark(x: Tensor, name: str) -> Tensor:
    """Return x itself, with a node behind it."""
    return torch.onnx.ops.symbolic(
        f"{_DOMAIN}::{_KIND}", (x,), {"name": name}, dtype=x.dtype, shape=x.shape, version=1
    )


def name_marked(model: Any) -> None:
    """Give what stands before each mark of a graph (an onnx_ir model) its name, without the mark.

    Raises ValueError where it has none, or is no value of a node's.
    """
    for node in [node for node in model.graph if node.op_type == _KIND and node.domain == _DOMAIN]:
        (value,), (made,) = node.inputs, node.outputs
        name = node.attributes["name"].as_string()
        if value.producer() is None or value.is_graph_output():
            raise ValueError(f"{name} is the value of no node")
        value.name, value.shape, value.dtype = name, made.shape, made.dtype
        made.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
    model.graph.opset_imports.pop(_DOMAIN, None)


def _settled(state: Residual, name: str) -> Residual:
    """A residual stream with nothing pending, marked."""
    x, _ = norm_modulate(NormModulate(*state, None, None, 0.0, state[0].dtype))
    return mark(x, name), None, None

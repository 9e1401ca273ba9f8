"""The model as ONNX with opaque nodes where a runtime has plugins, of the domain `lumosx`.

    QkNormRope                 RMS norm and rotation of queries and keys
    RelationalAttention        self-attention of video and references; VideoAttention without the
                               latter's queries, in the last block
    RelationalBias             the table of MCAM
    RelationalCrossAttention   the references' attention over the text, given that table

Every node has a function body of standard operators attached, made by exporting the operation
itself, so the same file runs in any ONNX runtime; with plugins, the bodies are not used.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lumosx_rt.export.onnx.graph import OPSETS, export_onnx, translate
from lumosx_rt.export.onnx.ops import attend_matmul, export_ops
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.ops import (
    QKV,
    Attended,
    CrossAttention,
    Ops,
    QkNormRope,
    SelfAttention,
    WordBias,
    bias_table,
    unrolled,
)
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure, structure_of

DOMAIN, VERSION = "lumosx", 1


class Operation(NamedTuple):
    """One kind of node: the names of its inputs and outputs, their axes, and what it computes."""

    inputs: dict[str, str]
    outputs: tuple[str, ...]
    compute: Callable[..., tuple[Tensor, ...]]


def export_plugin_onnx(
    model: LumosX,
    path: Path,
    *,
    report: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Write `path` (.onnx) and `path`.data with opaque nodes and their bodies; returns facts."""

    def attach(graph_model: Any) -> None:
        report("exporting the bodies of the opaque nodes")
        used = {node.op_type for node in graph_model.graph if node.domain == DOMAIN}
        for name, operation in operations(model.config).items():
            if name in used:
                function = _function(name, operation, model.config, model.dtype)
                graph_model.functions[function.identifier()] = function
        graph_model.graph.opset_imports[DOMAIN] = VERSION

    return export_onnx(model, path, ops=plugin_ops(model.config), finish=attach, report=report)


# -- the nodes -------------------------------------------------------------------------------------


def plugin_ops(config: LumosXConfig) -> Ops:
    """Return the operations as opaque nodes; the video's cross-attention, QK norms without
    rotation and `norm_modulate` stay standard operators."""
    attributes = {"heads": config.num_heads, "scale": config.head_dim**-0.5}
    spelled = export_ops(OPSETS[0])

    def self_attention(call: SelfAttention) -> Attended:
        video, condition, structure, _ = call
        assert video.q is not None
        groups = (structure.group_index, structure.group_mask, structure.group_inverse)
        known = (structure.bias_tiles, *groups)
        if condition.q is None:
            keys = (condition.k, condition.v)
            (out,) = _node("VideoAttention", (*video, *keys, *known), attributes, [video.q])
            return out, None
        given = (*video, *condition, *known)
        outs = _node("RelationalAttention", given, attributes, [video.q, condition.q])
        return outs[0], outs[1]

    def cross_attention(call: CrossAttention) -> Attended:
        _, condition_q, k, v, bias, structure, _ = call
        if condition_q is None or bias is None:
            return spelled.cross_attention(call)
        video_out, _ = spelled.cross_attention(call._replace(condition_q=None, bias=None))
        tiles = structure.bias_tiles
        own = attributes | {"ratio": bias.ratio}
        sizes = (config.num_heads, bias.template.shape[1], structure.tile_pool.shape[0])
        like = condition_q.new_empty((k.shape[0], *sizes, k.shape[1]))
        given = (condition_q, k, bias.template, structure.tile_pool, tiles)
        (table,) = _node("RelationalBias", given, own, [like])
        given = (condition_q, k, v, table, tiles)
        (out,) = _node("RelationalCrossAttention", given, attributes, [condition_q])
        return video_out, out

    def qk_norm_rope(call: QkNormRope) -> Tensor:
        x, weight, rope, heads, eps = call
        if weight is None or rope is None:
            return spelled.qk_norm_rope(call)
        own = {"heads": heads, "eps": eps}
        (out,) = _node("QkNormRope", (x, weight, rope), own, [x.unflatten(-1, (heads, -1))])
        return out

    return Ops(self_attention, cross_attention, qk_norm_rope)


def _node(
    name: str, inputs: Sequence[Tensor | None], attributes: dict[str, Any], like: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """One opaque node whose outputs are shaped and typed like these tensors."""
    outputs: tuple[Tensor, ...] = tuple(
        torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{name}",
            list(inputs),
            attributes,
            dtypes=[x.dtype for x in like],
            shapes=[x.shape for x in like],
            version=VERSION,
        )
    )
    return outputs


# -- their bodies ----------------------------------------------------------------------------------


def operations(config: LumosXConfig) -> dict[str, Operation]:
    """Return what each kind of node computes, in operations that are exported as standard
    operators."""
    spelled = export_ops(OPSETS[0])
    video = {name: "batch video heads head_dim" for name in ("video_q", "video_k", "video_v")}
    condition = {
        name: "streams condition heads head_dim"
        for name in ("condition_q", "condition_k", "condition_v")
    }
    frame = {"bias_tiles": "height width"}
    groups = dict.fromkeys(("group_index", "group_mask"), "streams groups members")
    groups |= {"group_inverse": "streams references"}
    query = {"q": "streams condition heads head_dim"}
    key, value = ({name: "streams text_len heads head_dim"} for name in ("k", "v"))
    words = {"template": "streams references text_len", "tile_pool": "tiles height width"}
    table = {"table": "streams heads references tiles text_len"}

    def attention(*given: Tensor) -> tuple[Tensor, ...]:
        structure = _structure(dict(zip([*frame, *groups], given[6:], strict=True)))
        call = SelfAttention(QKV(*given[:3]), QKV(*given[3:6]), structure)
        out = spelled.self_attention(call)
        assert out[1] is not None
        return out[0], out[1]

    def video_attention(*given: Tensor) -> tuple[Tensor]:
        structure = _structure(dict(zip([*frame, *groups], given[5:], strict=True)))
        video, condition = QKV(*given[:3]), QKV(None, *given[3:5])
        return (spelled.self_attention(SelfAttention(video, condition, structure))[0],)

    def bias(q: Tensor, k: Tensor, words: Tensor, pool: Tensor, tiles: Tensor) -> tuple[Tensor]:
        structure = _structure({"tile_pool": pool, "bias_tiles": tiles})
        return (bias_table(q, k, WordBias(words, config.mcam_ratio), structure),)

    def cross_attention(
        q: Tensor, k: Tensor, v: Tensor, table: Tensor, tiles: Tensor
    ) -> tuple[Tensor]:
        return (attend_matmul(q, k, v, unrolled(table, tiles)),)

    def norm_rope(x: Tensor, weight: Tensor, rope: Tensor) -> tuple[Tensor]:
        call = QkNormRope(x, weight, rope, config.num_heads, config.eps)
        return (spelled.qk_norm_rope(call),)

    keys = {name: condition[name] for name in ("condition_k", "condition_v")}
    # traced with one row of angles; what it becomes broadcasts, and takes a row a batch entry too
    norm = {"x": "batch tokens dim", "weight": "dim", "rope": "2 1 tokens pairs"}
    known, biased = {**frame, **groups}, {**query, **key, **words, **frame}
    both, one = ("video_out", "condition_out"), ("out",)
    return {
        "RelationalAttention": Operation({**video, **condition, **known}, both, attention),
        "VideoAttention": Operation({**video, **keys, **known}, one, video_attention),
        "RelationalBias": Operation(biased, ("table",), bias),
        "RelationalCrossAttention": Operation(
            {**query, **key, **value, **table, **frame}, one, cross_attention
        ),
        "QkNormRope": Operation(norm, one, norm_rope),
    }


def _structure(known: dict[str, Tensor]) -> Structure:
    """A structure of which only the `known` is read."""
    nothing = next(iter(known.values())).new_zeros((0,))
    return Structure(**{name: known.get(name, nothing) for name in Structure._fields})


class _Body(nn.Module):
    def __init__(self, compute: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self.compute(*given)


def _function(name: str, operation: Operation, config: LumosXConfig, dtype: torch.dtype) -> Any:
    """Return the body of a kind of node, as an onnx_ir function: any batch, tokens and groups."""
    import onnx_ir as ir

    sizes, example = _example(config, dtype)
    given, dynamic = [], []
    dims = {axis: torch.export.Dim(axis, min=0) for axis in _DYNAMIC}
    for tensor, axes in operation.inputs.items():
        words = axes.split()
        shape = [sizes[axis] if axis in sizes else int(axis) for axis in words]
        given.append(example[tensor] if tensor in example else torch.zeros(shape, dtype=dtype))
        dynamic.append({i: dims[axis] for i, axis in enumerate(words) if axis in dims})
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(
            _Body(operation.compute),
            tuple(given),
            dynamic_shapes=(tuple(dynamic),),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    body = translate(program, list(operation.inputs), list(operation.outputs), OPSETS[0]).graph
    for value in list(body.initializers.values()):  # a function has none
        constant = ir.node("Constant", [], attributes={"value": value.const_value})
        value.replace_all_uses_with(constant.outputs[0])
        constant.outputs[0].name = value.name
        body.insert_before(body[0], constant)
    body.initializers.clear()
    return ir.Function(DOMAIN, name, graph=body, attributes=_attributes(name))


_DYNAMIC = (
    "batch", "streams", "video", "condition", "tokens", "height", "width", "tiles",
    "groups", "members", "references",
)  # fmt: skip


def _example(config: LumosXConfig, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Sizes that belong together, and the inputs whose values matter to tracing."""
    layouts = [SceneLayout.from_key(key) for key in ("3x4x9+2+2.3", "3x4x9+3+2.2")]
    structure, first = structure_of(layouts, config.head_dim), layouts[0]
    groups, members = structure.group_index.shape[1:]
    condition = first.references * first.frame_tokens
    sizes = {
        "batch": 6, "streams": 2, "video": first.video_tokens, "condition": condition,
        "tokens": condition, "heads": config.num_heads, "head_dim": config.head_dim,
        "dim": config.dim, "pairs": config.head_dim // 2, "text_len": config.text_len,
        "height": first.height, "width": first.width, "tiles": first.tiles, "groups": groups,
        "members": members, "references": first.references,
    }  # fmt: skip
    template = torch.zeros(2, first.references, config.text_len)
    rope = torch.zeros(2, 1, condition, config.head_dim // 2)
    return sizes, {**structure._asdict(), "template": template, "rope": rope}


def _attributes(name: str) -> list[Any]:
    """Return what a plugin reads off a node; a body has these numbers built in."""
    import onnx_ir as ir

    names: tuple[str, ...] = {"QkNormRope": ("heads", "eps")}.get(name, ("heads", "scale"))
    if name == "RelationalBias":
        names = (*names, "ratio")
    kinds = {"heads": ir.AttributeType.INT}
    return [ir.Attr(n, kinds.get(n, ir.AttributeType.FLOAT), None) for n in names]

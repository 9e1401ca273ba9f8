"""A graph cut into parts at its marks (`marks.py`), for what some steps leave out.

    keys      time, text, references -> every block's keys and values of the references
    whole     latents, time, text, keys and values -> velocity
    first     latents, time, text -> the video after the first block; the first block's residual,
              and by what share it differs from `previous`
    rest      the video after the first block -> what the other blocks add to it
    head      the video after the first block, what the others add -> velocity

`cut` is the same nodes and the same external weights; only what compares and adds is new.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lumosx_rt.export.onnx.named_values import CONDITION, EMBEDDED, FIRST, LAST, keys_of, video_of
from lumosx_rt.reference.sampling.inputs import OUTPUT

RESIDUAL, PREVIOUS, CHANGE, ADDED = "residual", "previous", "change", "added"


def blocks_of(model: Any) -> int:
    """Blocks of a marked graph; 0 of one without marks."""
    names = {name for node in model.graph.node for name in node.output}
    count = 0
    while keys_of(count)[0] in names:
        count += 1
    return count


def parts_of(model: Any, *, keys: bool, steps: bool) -> dict[str, Any]:
    """Return the parts of an ONNX model (its weights beside it) that run one after the other.

    keys: the references' keys and values apart. steps: the first block, the others and the head
    apart; needs two blocks. Raises ValueError for a graph without marks, or with too few.
    """
    blocks = blocks_of(model)
    if blocks < (2 if steps else 1):
        raise ValueError(f"the graph has {blocks} marked blocks")
    given: list[str] = []
    parts = {}
    if keys:
        given = [name for block in range(blocks) for name in keys_of(block)]
        video = [name for block in range(blocks) for name in video_of(block)]
        parts["keys"] = cut(model, video, given)
    if not steps:
        return parts | {"whole": cut(model, given, [OUTPUT])}
    between = [] if keys else [CONDITION]
    like = next(value for value in model.graph.value_info if value.name == FIRST)
    parts["first"] = cut(model, given, [EMBEDDED, FIRST, *between])
    _compare(parts["first"].graph, like)
    parts["rest"] = cut(model, [FIRST, *between, *given], [LAST])
    _subtract(parts["rest"].graph, like)
    parts["head"] = cut(model, [LAST], [OUTPUT])
    _add(parts["head"].graph, like)
    return parts


def cut(model: Any, given: Collection[str], wanted: Sequence[str]) -> Any:
    """Return the part of an ONNX model that makes `wanted` from its inputs and from `given`."""
    from onnx import GraphProto, ModelProto

    graph, given = model.graph, set(given)
    needed, kept = set(wanted), []
    for node in reversed(graph.node):  # in an order in which they can run
        if any(name in needed and name not in given for name in node.output):
            kept.append(node)
            needed |= set(node.input)
    known = {value.name: value for value in [*graph.value_info, *graph.input, *graph.output]}
    own = {value.name for value in graph.input}
    made = {name for node in kept for name in node.output}
    part = GraphProto(name=graph.name)
    part.node.extend(reversed(kept))
    part.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    part.input.extend(known[name] for name in sorted(needed & (own | given)))
    part.output.extend(known[name] for name in wanted)
    inner = made - set(wanted)
    part.value_info.extend(value for value in graph.value_info if value.name in inner)
    return ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        graph=part,
    )


def load(path: Path) -> Any:
    """A graph without its weights."""
    import onnx

    return onnx.load(path, load_external_data=False)


# -- what is new in a part; like: what a residual stream is, as an input or output -----------------


def _compare(graph: Any, like: Any) -> None:
    """Add the first block's residual, and its mean change as a share of `previous`, the largest
    of all streams and seeds."""
    from onnx import TensorProto, helper

    graph.initializer.append(helper.make_tensor("all/axes", TensorProto.INT64, [2], [1, 2]))
    for operator, inputs, output in (
        ("Sub", [FIRST, EMBEDDED], RESIDUAL),
        ("Sub", [RESIDUAL, PREVIOUS], "difference"),
        ("ReduceL1", ["difference", "all/axes"], "difference/sum"),
        ("ReduceL1", [PREVIOUS, "all/axes"], "previous/sum"),
        ("Div", ["difference/sum", "previous/sum"], "change/each"),
        ("ReduceMax", ["change/each"], CHANGE),
    ):
        sums: dict[str, Any] = {"keepdims": 0} if operator.startswith("Reduce") else {}
        graph.node.append(helper.make_node(operator, inputs, [output], **sums))
    kind = like.type.tensor_type.elem_type
    anything = ["any_batch", "any_tokens", "any_dim"]  # before there is one: a single zero
    graph.input.append(helper.make_tensor_value_info(PREVIOUS, kind, anything))
    graph.output.append(_named(RESIDUAL, like))
    graph.output.append(helper.make_tensor_value_info(CHANGE, kind, []))
    _no_output(graph, EMBEDDED)


def _subtract(graph: Any, like: Any) -> None:
    """Add what is added to the first block's video, in place of the last block's."""
    from onnx import helper

    graph.node.append(helper.make_node("Sub", [LAST, FIRST], [ADDED]))
    graph.output.append(_named(ADDED, like))
    _no_output(graph, LAST)


def _add(graph: Any, like: Any) -> None:
    """Add the last block's video, from what comes before it."""
    from onnx import helper

    nodes = [helper.make_node("Add", [FIRST, ADDED], [LAST]), *graph.node]
    inputs = [value for value in graph.input if value.name != LAST]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend([*inputs, like, _named(ADDED, like)])


def _named(name: str, like: Any) -> Any:
    value = type(like)()
    value.CopyFrom(like)
    value.name = name
    return value


def _no_output(graph: Any, name: str) -> None:
    kept = [value for value in graph.output if value.name != name]
    del graph.output[:]
    graph.output.extend(kept)

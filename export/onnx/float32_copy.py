"""A half-precision graph as onnxruntime runs it on a CPU: the same nodes and weights, in float32.

onnxruntime's CPU has no bf16, and its `Attention` takes neither masks that broadcast over the
queries nor zero queries. So weights are cast where they are read, casts to half precision go to
float32, and attention is spelled out. What rounding costs is not in it; everything else is.
"""

from pathlib import Path
from typing import Any

_TYPE_OF = {"Cast": ["to"], "DequantizeLinear": ["output_dtype"]}


def widen(graph: Path, widened: Path) -> None:
    """Write `widened` (.onnx) beside `graph`, whose external data it shares."""
    import onnx_ir as ir

    model = ir.load(graph)
    low = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
    for value in list(model.graph.initializers.values()):
        if value.dtype in low:
            _cast(model.graph, value, model.graph[0])
    for node in list(model.graph):
        for name in _TYPE_OF.get(node.op_type, ()):
            to = node.attributes.get(name)
            if to is not None and to.value in map(int, low):
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        for output in node.outputs:
            if output.dtype in low:
                output.dtype = ir.DataType.FLOAT
        if node.op_type == "Attention":
            _spell_out(model.graph, node)
    ir.save(model, widened)


def _cast(graph: Any, value: Any, before: Any) -> None:
    import onnx_ir as ir

    users = list(value.uses())
    cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
    cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, ir.DataType.FLOAT
    for node, index in users:
        node.replace_input_with(index, cast.outputs[0])
    graph.insert_before(before, cast)


def _spell_out(graph: Any, attention: Any) -> None:
    """softmax(q k^T / sqrt(d) + mask) v on q, k, v [batch, heads, tokens, d]; a boolean mask says
    what is seen."""
    import numpy as np
    import onnx_ir as ir

    q, k, v, *masks = attention.inputs
    nodes: list[Any] = []

    def add(operator: str, *inputs: Any, **attributes: Any) -> Any:
        nodes.append(ir.node(operator, list(inputs), attributes=attributes))
        return nodes[-1].outputs[0]

    def constant(number: float) -> Any:
        return add("Constant", value=ir.tensor(np.array(number, np.float32)))

    logits = add("MatMul", q, add("Transpose", k, perm=[0, 1, 3, 2]))
    logits = add("Mul", logits, constant(q.shape[-1] ** -0.5))
    for mask in masks:
        if mask.dtype == ir.DataType.BOOL:
            mask = add("Where", mask, constant(0.0), constant(-1e30))
        logits = add("Add", logits, mask)
    attended = add("MatMul", add("Softmax", logits, axis=-1), v)
    old = attention.outputs[0]
    attended.shape, attended.dtype, attended.name = old.shape, old.dtype, f"{old.name}.spelled"
    ir.convenience.replace_all_uses_with(old, attended)
    graph.insert_before(attention, nodes)
    graph.remove(attention, safe=True)

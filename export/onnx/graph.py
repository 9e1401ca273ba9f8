"""The traced program -> ONNX with external data: one graph, of standard operators only."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lumosx_rt.export.onnx.ops import export_ops
from lumosx_rt.export.program import trace
from lumosx_rt.reference.backbones.ops import Ops
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.sampling.inputs import AXES, INPUTS, OUTPUT

OPSETS = (23, 20)


def export_onnx(
    model: LumosX,
    path: Path,
    *,
    opset: int = OPSETS[0],
    precision: str = "fp32",
    ops: Ops | None = None,
    finish: Callable[[Any], None] = lambda graph: None,
    report: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Write `path` (.onnx) and `path`.data; returns facts about the graph for the report.

    precision "fp16" stores matrices in half precision where they survive it and computes in
    float32. ops: how the four operations are spelled, by default in standard operators. finish:
    is given the simplified graph (an onnx_ir model), to add to it. `report` is shown each stage.
    """
    report("tracing the model")
    program = trace(model, ops or export_ops(opset))
    report("translating to ONNX")
    graph_model = translate(program, INPUTS, [OUTPUT], opset)
    del program
    finish(graph_model)
    _name_axes(graph_model)
    halved = _halve_matrices(graph_model) if precision == "fp16" else 0
    report("writing weights")
    _save(graph_model, path)
    operators: dict[str, int] = {}
    for node in graph_model.graph:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return {
        "opset": opset,
        "operators": dict(sorted(operators.items(), key=lambda item: -item[1])),
        "half_precision_matrices": halved,
    }


def translate(
    program: torch.export.ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
) -> Any:
    """A traced program as a simplified ONNX graph (an onnx_ir model), its ends named so."""
    with _quiet(), torch.no_grad():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            external_data=True,
            verbose=False,
            optimize=False,
        )
    assert onnx_program is not None
    _simplify(onnx_program.model)
    return onnx_program.model


def _simplify(model: Any) -> None:
    """Fold, merge what is computed twice, then onnxscript's rewriting.

    In this order: its rules are quadratic in the number of nodes, and merging first takes two
    thirds of them away (a 30-layer graph: seconds instead of half an hour).
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    common.DeduplicateInitializersPass(size_limit=1)(model)  # scales of one operand
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=False)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    optimizer.optimize(model, num_iterations=1, onnx_shape_inference=False)
    # the exporter notes source lines and paths of this machine everywhere
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        node.metadata_props.clear()
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks on itself, kept quiet."""
    remarks = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        remarks.setLevel(level)


def _name_axes(model: Any) -> None:
    """Give the exporter's anonymous symbols (s18) the names of their axes."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for dim, axis in zip(value.shape, AXES[value.name], strict=True):
            if isinstance(axis, str) and re.fullmatch(r"[a-z]+\d+", str(getattr(dim, "value", ""))):
                names[str(dim.value)] = axis
    import onnx_ir as ir

    def renamed(dim: Any) -> Any:
        if isinstance(dim, int):
            return dim
        text = re.sub(r"\b[a-z]+\d+\b", lambda m: names.get(m[0], m[0]), str(dim.value))
        return ir.SymbolicDim(text)

    values = list(model.graph.inputs) + [v for node in model.graph for v in node.outputs]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def _halve_matrices(model: Any) -> int:
    """Store float32 matrices as float16 and cast them back in the graph, where that is right.

    Right means: no value overflows, and rounding to half costs at most 2^-11 of the matrix's norm,
    so nothing substantial sinks into the subnormals.
    """
    import numpy as np
    import onnx_ir as ir

    halved = 0
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2 or tensor.size < 4096:
            continue
        if all(node.op_type.startswith("Gather") for node, _ in value.uses()):
            continue  # the time table is no weight
        full = tensor.numpy()
        if np.abs(full).max() > 65504:
            continue
        half = full.astype(np.float16)
        if np.linalg.norm(half.astype(np.float32) - full) > 2**-11 * np.linalg.norm(full):
            continue
        users = list(value.uses())
        stored = ir.Value(
            name=f"{value.name}.fp16",
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(half, name=f"{value.name}.fp16"),
        )
        cast = ir.node("Cast", [stored], attributes={"to": int(ir.DataType.FLOAT)})
        cast.outputs[0].name = f"{value.name}.fp32"
        cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, ir.DataType.FLOAT
        for node, index in users:
            node.replace_input_with(index, cast.outputs[0])
        model.graph.initializers.pop(value.name)
        model.graph.initializers.add(stored)
        model.graph.insert_before(model.graph[0], cast)
        halved += 1
    return halved


def _save(model: Any, path: Path) -> None:
    import onnx_ir as ir

    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)

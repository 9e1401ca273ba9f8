"""Model -> torch.export -> ONNX with external data: one graph for every grouping and size.

Streams, seeds, frames, height, width, references, groups and members are all dynamic; a scene
without references is the same graph with zero reference frames. Standard operators only.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lumosx_rt.export.ops import export_ops
from lumosx_rt.reference.config import LumosXConfig
from lumosx_rt.reference.layout import ROPE_TABLE, SceneLayout
from lumosx_rt.reference.model import LumosX
from lumosx_rt.reference.structure import Structure, structure_of

Precision = Literal["fp32", "fp16"]
OPSETS = (23, 20)
INPUTS = ("latents", "time", "text", "references", "template", *Structure._fields)
OUTPUT = "velocity"
MAX_STREAMS, MAX_SEEDS = 64, 64
MAX_REFERENCES = 64

# the names of each input's axes; a number is fixed, "2*x" is twice the axis x
AXES: dict[str, tuple[str | int, ...]] = {
    "latents": ("streams", "seeds", "channels", "frames", "2*height", "2*width"),
    "time": ("streams",),
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
    "streams": (1, MAX_STREAMS),
    "seeds": (1, MAX_SEEDS),
    "frames": (1, ROPE_TABLE),
    "height": (1, ROPE_TABLE),
    "width": (1, ROPE_TABLE),
    "references": (0, MAX_REFERENCES),
    "groups": (1, MAX_REFERENCES),
    "members": (1, ROPE_TABLE + MAX_REFERENCES),  # with visibility off, a group holds every frame
    "tiles": (1, (ROPE_TABLE // 8) ** 2),
}


def model_inputs(
    config: LumosXConfig, layouts: list[SceneLayout], seeds: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Structure]:
    """Random inputs of the model for streams of these layouts, as the model takes them."""
    first, streams = layouts[0], len(layouts)
    random = torch.Generator("cpu").manual_seed(seed)
    size = (2 * first.height, 2 * first.width)
    references, text_len = first.references, config.text_len
    return (
        torch.randn(streams, seeds, config.in_dim, first.video_frames, *size, generator=random),
        torch.randint(1, 1000, (streams,), generator=random),
        torch.randn(streams, text_len, config.text_dim, generator=random),
        torch.randn(streams, references, config.in_dim, *size, generator=random),
        torch.randn(streams, references, text_len, generator=random),
        structure_of(layouts, config.head_dim),
    )


def feed_of(inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """The model's positional inputs under the graph's names."""
    *tensors, structure = inputs
    return dict(zip(INPUTS, [*tensors, *structure], strict=True))


def export_onnx(
    model: LumosX,
    path: Path,
    *,
    opset: int = OPSETS[0],
    precision: Precision = "fp32",
    report: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Write `path` (.onnx) and `path`.data; returns facts about the graph for the report.

    precision "fp16" stores matrices in half precision where they survive it and computes in
    float32. `report` is told each stage as it begins.
    """
    layout = SceneLayout(video_frames=3, height=4, width=9, lone=2, subjects=(2, 3))
    other = replace(layout, lone=3, subjects=(2, 2))
    example = model_inputs(model.config, [layout, other], seeds=3)
    report("tracing the model")
    with _exporting(model, opset), torch.no_grad():
        program = torch.export.export(
            model,
            example,
            dynamic_shapes=_dynamic_shapes(),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        report("translating to ONNX")
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            external_data=True,
            verbose=False,
            optimize=False,
        )
    assert onnx_program is not None
    graph_model = onnx_program.model
    del program, onnx_program
    report("simplifying the graph")
    _simplify(graph_model)
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


def _simplify(model: Any) -> None:
    """Fold, merge what is computed twice, then onnxscript's rewriting.

    In this order: its rules are quadratic in the number of nodes, and merging first takes two
    thirds of them away (a 30-layer graph: seconds instead of half an hour).
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

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
def _exporting(model: LumosX, opset: int) -> Iterator[None]:
    """The model with export's operations, and the exporter's remarks on itself kept quiet."""
    ops, training = model.ops, model.training
    remarks = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = remarks.level
    model.ops = export_ops(opset)
    model.eval()
    remarks.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        remarks.setLevel(level)
        model.ops = ops
        model.train(training)


def _dynamic_shapes() -> tuple[Any, ...]:
    from torch.export import Dim

    dims = {name: Dim(name, min=least, max=most) for name, (least, most) in LIMITS.items()}

    def axes(name: str) -> dict[int, Any]:
        shape: dict[int, Any] = {}
        for i, axis in enumerate(AXES[name]):
            if axis in dims:
                shape[i] = dims[str(axis)]
            elif str(axis).startswith("2*"):
                shape[i] = 2 * dims[str(axis)[2:]]
        return shape

    tensors: list[Any] = [axes(name) for name in INPUTS]
    split = len(INPUTS) - len(Structure._fields)
    return (*tensors[:split], Structure(*tensors[split:]))


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

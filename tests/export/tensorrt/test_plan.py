"""Plans from graphs that are wrong on purpose: the gate must see each, and name it."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from lumosx_rt.backends.common.forward_parity import forward_parity
from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend
from lumosx_rt.calibration.formats import FORMATS
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.onnx.float32_copy import widen
from lumosx_rt.export.tensorrt.plan import attention_sites, build_plan
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError

trt = pytest.importorskip("tensorrt_rtx")

LIMITS = Limits.around((5, 8, 18), max_references=4, max_seeds=1)
SITES = attention_sites(2)
GROUPS, REFERENCES = SITES.index("blocks.0.self.groups"), SITES.index("blocks.0.cross.references")


def changed(graph: Path, folder: Path, site: int, change: Any) -> Path:
    """A copy of the graph in which one attention has become other nodes."""
    model = onnx.load(graph, load_external_data=False)
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    place = list(model.graph.node).index(attention[site])
    nodes = [*model.graph.node]
    nodes[place : place + 1] = change(attention[site])
    while True:  # what nobody reads any more
        read = {name for node in nodes for name in node.input} | {model.graph.output[0].name}
        left = [node for node in nodes if read & {*node.output}]
        if len(left) == len(nodes):
            break
        nodes = left
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    shutil.copy(f"{graph}.data", folder)
    onnx.save(model, folder / graph.name)
    return folder / graph.name


def unmasked(attention: Any) -> list[Any]:
    del attention.input[3]
    return [attention]


def in_pieces(attention: Any) -> list[Any]:
    """Softmax between two products, and a root that no fused kernel has."""
    q, k, v, _ = attention.input
    transposed = helper.make_node("Transpose", [k], ["p.k"], perm=[0, 1, 3, 2])
    logits = helper.make_node("MatMul", [q, "p.k"], ["p.logits"])
    softmax = helper.make_node("Softmax", ["p.logits"], ["p.soft"], axis=-1)
    root = helper.make_node("Sqrt", ["p.soft"], ["p.root"])
    product = helper.make_node("MatMul", ["p.root", v], [attention.output[0]])
    return [transposed, logits, softmax, root, product]


def without_softmax(attention: Any) -> list[Any]:
    transposed, logits, _, root, product = in_pieces(attention)
    root.input[0] = logits.output[0]
    return [transposed, logits, root, product]


def refusal(graph: Path, out: Path, **options: Any) -> str:
    said: dict[str, Any] = {"sites": SITES, "precision": "bf16", "limits": LIMITS}
    with pytest.raises(LumosXError) as found:
        build_plan(trt, graph, out, **said | {"targets": ["sm_89"]} | options)
    assert not out.exists()
    return str(found.value)


def test_every_attention_of_a_model_has_a_name() -> None:
    assert SITES == [
        "blocks.0.self.video", "blocks.0.self.groups", "blocks.0.cross.video",
        "blocks.0.cross.references", "blocks.1.self.video", "blocks.1.cross.video",
    ]  # fmt: skip
    assert len(attention_sites(30)) == 29 * 4 + 2


def test_attention_that_does_not_fuse_is_named(plan_graph: Path, tmp_path: Path) -> None:
    graph = changed(plan_graph, tmp_path, REFERENCES, in_pieces)
    said = refusal(graph, tmp_path / "model.plan")
    assert "blocks.0.cross.references is not one fused kernel: it became" in said
    assert "blocks.0.self" not in said and "blocks.1" not in said


def test_an_input_that_is_not_used_is_named(plan_graph: Path, tmp_path: Path) -> None:
    graph = changed(plan_graph, tmp_path, GROUPS, unmasked)
    said = refusal(graph, tmp_path / "model.plan")
    assert "Unused Input: group_mask" in said and "input 'group_mask' is read by no kernel" in said


def test_attention_that_is_missing_is_counted(plan_graph: Path, tmp_path: Path) -> None:
    graph = changed(plan_graph, tmp_path, GROUPS, without_softmax)
    assert "has 5 attentions, the model 6" in refusal(graph, tmp_path / "model.plan")


def test_what_tensorrt_cannot_read_or_build_is_told_in_its_words(
    plan_graph: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    assert "cannot parse" in refusal(tmp_path / "model.onnx", tmp_path / "model.plan")
    said = refusal(plan_graph, tmp_path / "model.plan", targets=["sm_75"])
    assert "cannot build" in said and "sm75" in said and "\n" not in said


# -- the graph itself, in float32 ------------------------------------------------------------------


@pytest.fixture
def rounded(micro_bundle: Path) -> LumosX:
    return recast(recast(load_transformer(micro_bundle), torch.bfloat16), torch.float32)


def test_the_graph_in_float32_is_the_reference(
    plan_graph: Path, tmp_path: Path, rounded: LumosX
) -> None:
    folder = Path(shutil.copytree(plan_graph.parent, tmp_path / "graph"))
    widen(folder / "model.onnx", folder / "widened.onnx")
    proto = onnx.load(folder / "widened.onnx", load_external_data=False).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.value_info}
    stored = {tensor.name for tensor in proto.initializer}
    low = {name for name, kind in kinds.items() if kind == TensorProto.BFLOAT16}
    assert low and low <= stored  # weights as they are, nothing else
    backend = OnnxRuntimeBackend(folder / "widened.onnx", "cpu", threads=1)
    for case in forward_parity(rounded, backend):
        assert 0 < case["relative_error"] < case["gate"] == FORMATS["fp32"].forward_gate


@pytest.mark.parametrize("site", [GROUPS, REFERENCES])
def test_a_lost_mask_is_another_answer(
    plan_graph: Path, tmp_path: Path, rounded: LumosX, site: int
) -> None:
    graph = changed(plan_graph, tmp_path, site, unmasked)
    widen(graph, tmp_path / "widened.onnx")
    backend = OnnxRuntimeBackend(tmp_path / "widened.onnx", "cpu", threads=1)
    cases = forward_parity(rounded, backend)
    assert max(case["relative_error"] / case["gate"] for case in cases) > 10

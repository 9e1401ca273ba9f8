"""The graph with opaque nodes: their bodies make it run anywhere, with the reference's numbers, and
with the released model's, whose weights it has here."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from lumosx_rt.export.onnx.opaque_nodes import DOMAIN, export_plugin_onnx
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.sampling.inputs import OUTPUT
from tests.export.onnx.test_golden_exports import GATE, QUICK, feed_of_case, run
from tests.export.onnx.test_graph import (
    CASES,
    assert_is_the_reference,
    inputs_of,
    reference,
    relative,
)
from tests.helpers.inputs import feed_of
from tests.helpers.tracing import in_less_time
from tests.kernels.driven import arguments
from tests.kernels.plugged import scene
from tests.reference.test_golden import ModelCase, error

TYPES = {torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT", torch.int64: "INT64"}
TYPES[torch.bool] = "BOOL"
# per block: attention of both kinds, rotation of q and k for video and condition; the last block
# rotates no condition queries and attends with the video alone
NODES = {"RelationalAttention": 1, "VideoAttention": 1, "RelationalCrossAttention": 1}
NODES |= {"RelationalBias": 1, "QkNormRope": 7}


@pytest.fixture(scope="module")
def case() -> ModelCase:
    return ModelCase(QUICK)


@pytest.fixture(scope="module")
def model(case: ModelCase) -> LumosX:
    return case.model.eval()


@pytest.fixture(scope="module")
def path(model: LumosX, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "model.onnx"
    with in_less_time():
        export_plugin_onnx(model, path)
    return path


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_what_a_plugin_replaces_is_one_node_each(model: LumosX, path: Path) -> None:
    config = model.config
    proto = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(str(path))
    found = [node for node in proto.graph.node if node.domain == DOMAIN]
    assert {n.op_type: sum(m.op_type == n.op_type for m in found) for n in found} == NODES
    assert {function.name for function in proto.functions} == set(NODES)
    for node in found:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert given["heads"] == config.num_heads
        if node.op_type == "RelationalBias":
            assert given["ratio"] == pytest.approx(config.mcam_ratio)
        if node.op_type == "QkNormRope":
            assert given["eps"] == pytest.approx(config.eps)
        else:
            assert given["scale"] == pytest.approx(config.head_dim**-0.5)


def test_no_body_holds_anything_of_the_machine(path: Path) -> None:
    text = path.read_bytes()
    assert b"/site-packages/" not in text and b".py" not in text


@pytest.mark.parametrize("name", CASES)
def test_one_graph_for_every_layout(model: LumosX, path: Path, name: str) -> None:
    inputs = inputs_of(*CASES[name], model.config)
    feed = {name: tensor.numpy() for name, tensor in feed_of(inputs).items()}
    found = torch.from_numpy(session(path).run([OUTPUT], feed)[0])
    assert_is_the_reference(found, model, inputs)


def test_the_released_models_numbers(case: ModelCase, path: Path) -> None:
    """And control: words a tenth stronger, and two references exchanged in their group."""
    feed, expected = feed_of_case(case), case.golden("out_video")
    assert error(run(path, feed), expected) <= GATE
    wrong = {
        "template": feed["template"] * np.float32(1.1),
        "references": feed["references"][:, [1, 0, 2]],
    }
    for name, value in wrong.items():
        assert error(run(path, feed | {name: value}), expected) > 10 * GATE


def test_a_wrong_body_is_noticed(model: LumosX, path: Path, tmp_path: Path) -> None:
    """Control: the softmax scale of one body changed by a tenth."""
    proto = onnx.load(path)
    body = next(f for f in proto.functions if f.name == "RelationalCrossAttention")
    scale = model.config.head_dim**-0.5
    changed = 0
    for node in body.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                value = onnx.numpy_helper.to_array(attribute.t)
                if value.size == 1 and np.isclose(float(value.reshape(-1)[0]), scale):
                    wrong = (value * 1.1).astype(value.dtype)
                    attribute.t.CopyFrom(onnx.numpy_helper.from_array(wrong, attribute.t.name))
                    changed += 1
    assert changed
    onnx.save(proto, tmp_path / "wrong.onnx")
    inputs = inputs_of(*CASES["as traced"], model.config)
    feed = {name: tensor.numpy() for name, tensor in feed_of(inputs).items()}
    found = torch.from_numpy(session(tmp_path / "wrong.onnx").run([OUTPUT], feed)[0])
    assert relative(found, reference(model, inputs)) > 1e-4


def test_onnx_own_evaluator_and_inliner_agree(model: LumosX, path: Path) -> None:
    inputs = inputs_of(*CASES["one group, one stream"], model.config)
    feed = {name: tensor.numpy() for name, tensor in feed_of(inputs).items()}
    proto = onnx.load(path)
    inlined = inline_local_functions(proto)
    assert not inlined.functions and all(n.domain != DOMAIN for n in inlined.graph.node)
    for one in (proto, inlined):
        (found,) = ReferenceEvaluator(one).run([OUTPUT], feed)
        assert_is_the_reference(torch.from_numpy(found), model, inputs)


@pytest.mark.slow
def test_bfloat16_by_onnx_own_evaluator(model: LumosX, tmp_path: Path) -> None:
    """Near what eager torch does in bfloat16: the evaluator also accumulates in it, by numpy."""
    half = LumosX(model.config, torch.bfloat16)
    half.load_state_dict(model.state_dict())
    export_plugin_onnx(half, tmp_path / "model.onnx")
    check_types(onnx.load(tmp_path / "model.onnx", load_external_data=False).graph)
    evaluator = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    for name in ("one group, one stream", "as traced"):
        inputs = inputs_of(*CASES[name], model.config)
        exact = reference(model, inputs)
        feed = {name: tensor.numpy() for name, tensor in feed_of(inputs).items()}
        (found,) = evaluator.run([OUTPUT], feed)
        eager = relative(reference(half, inputs), exact)
        assert 1e-4 < eager and relative(torch.from_numpy(found), exact) <= 10 * eager < 0.05


def check_types(graph: onnx.GraphProto) -> None:
    """Nodes read the types that plugins are offered with, in `test_plugin_lifecycle.py`."""
    values = [*graph.value_info, *graph.input]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    offered = arguments(scene())
    for node in graph.node:
        if node.domain == DOMAIN:
            read = [onnx.TensorProto.DataType.Name(kinds[name]) for name in node.input]
            assert read == [TYPES[tensor.dtype] for tensor in offered[node.op_type]]

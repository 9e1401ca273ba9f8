"""The exported graph run by onnxruntime against the reference: one file for every layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from lumosx_rt.artifact.manifest import GRAPH
from lumosx_rt.artifact.report import read_report
from lumosx_rt.export.onnx.graph import OPSETS, export_onnx
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.inputs import AXES, INPUTS, OUTPUT
from tests.helpers.budget import assert_within_budget, in_float64, widened
from tests.helpers.inputs import feed_of, model_inputs

WIDER = LumosXConfig(
    dim=96, num_heads=2, ffn_dim=128, num_layers=1, freq_dim=16, text_dim=48, text_len=12
)

CASES: dict[str, tuple[list[str], int]] = {  # streams' layouts, seeds
    "as traced": (["3x4x9+2+2.3", "3x4x9+3+2.2"], 3),
    "no references": (["2x3x5+0+-"], 1),
    "no references, streams and seeds": (["2x3x5+0+-"] * 3, 2),
    "one group, one stream": (["1x4x4+0+2"], 1),
    "unequal groups": (["2x3x9+1+3", "2x3x9+0+1.3"], 1),
    "several seeds": (["2x3x9+1+2.1"], 4),
    "streams and seeds": (["2x2x9+1+2.1", "2x2x9+4+-", "2x2x9+0+4"], 2),
    "wide": (["5x2x26+3+1"], 1),
    "tall, two rows of tiles": (["1x11x9+1+2"], 1),
    "one token": (["1x1x1+0+-"], 1),
    "one token, one image": (["1x1x1+0+1"], 1),
    "many references": (["1x2x3+3+4.5.1.3"], 1),
    "visibility off": (["2x3x4+1+2+novis"], 1),
    "visibility off beside on": (["2x3x4+1+2+novis", "2x3x4+1+2"], 1),
    "positions and tiling off": (["2x3x9+1+2.2+nopos+notiling"], 1),
}


def random_model(config: LumosXConfig) -> LumosX:
    torch.manual_seed(0)
    model = LumosX(config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "modulation" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(2.0)
    return model


@dataclass(repr=False)
class Exported:
    """A model, its graph on disk, what `export_onnx` said of it, and a session that runs it."""

    model: LumosX
    path: Path
    facts: dict[str, Any]
    stages: list[str]

    def __post_init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )
        self.proto = onnx.load(self.path, load_external_data=False)

    def run(self, inputs: tuple[Any, ...]) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in feed_of(inputs).items()}
        return torch.from_numpy(self.session.run([OUTPUT], feed)[0])


def export(folder: Path, model: LumosX, **settings: Any) -> Exported:
    path, stages = folder / "new" / "model.onnx", list[str]()
    facts = export_onnx(model, path, report=stages.append, **settings)
    return Exported(model, path, facts, stages)


@pytest.fixture(scope="module", params=[23, pytest.param(20, marks=pytest.mark.slow)])
def exported(
    request: pytest.FixtureRequest,
    micro: Any,
    micro_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    """The graph of the micro engine, and its other spelling."""
    model = load_transformer(micro_bundle)
    if request.param == OPSETS[0]:
        facts = read_report(micro.folder)["build"]
        return Exported(model, micro.folder / GRAPH, facts, [])
    return export(tmp_path_factory.mktemp("graph"), model, opset=request.param)


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(
        tmp_path_factory.mktemp("graph"), random_model(WIDER), opset=OPSETS[-1], precision="fp16"
    )


def inputs_of(keys: Sequence[str], seeds: int, config: LumosXConfig) -> tuple[Any, ...]:
    return model_inputs(config, [SceneLayout.from_key(key) for key in keys], seeds, seed=1)


@torch.no_grad()
def reference(model: LumosX, inputs: tuple[Any, ...]) -> Tensor:
    out: Tensor = model(*inputs)
    return out


def relative(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


def assert_is_the_reference(found: Tensor, model: LumosX, inputs: tuple[Any, ...]) -> Tensor:
    """At most four times the reference's own error in float32; returns the exact answer.

    Not twice: exp and tanh of onnxruntime are its own, and a graph's error came to 2.3 times.
    """
    exact = reference(in_float64(model), widened(inputs))
    assert_within_budget("velocity", found, reference(model, inputs), exact, times=4)
    return exact


# -- the same numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_one_graph_for_every_layout(exported: Exported, case: str) -> None:
    inputs = inputs_of(*CASES[case], exported.model.config)
    exact = assert_is_the_reference(exported.run(inputs), exported.model, inputs)
    assert exact.std() > 0.1


def test_another_group_is_another_answer(exported: Exported) -> None:
    """Control: groups are data, and the comparison above sees two of their members swapped."""
    *rest, structure = inputs_of(["2x3x9+0+2.2"], 1, exported.model.config)
    index = structure.group_index.clone()
    assert index.tolist() == [[[2, 3], [4, 5]]]
    index[0, 0, 1], index[0, 1, 1] = 5, 3
    inverse = torch.tensor([[0, 3, 2, 1]])
    swapped = (*rest, structure._replace(group_index=index, group_inverse=inverse))
    right, wrong = exported.run((*rest, structure)), exported.run(swapped)
    assert relative(wrong, right) > 1e-4
    assert_is_the_reference(wrong, exported.model, swapped)
    only_index = (*rest, structure._replace(group_index=index))
    assert relative(exported.run(only_index), right) > 1e-4


@pytest.mark.parametrize("name", ["time", "text", "references", "template", "bias_tiles"])
def test_every_input_is_read(exported: Exported, name: str) -> None:
    inputs = inputs_of(["2x3x9+1+2"], 1, exported.model.config)
    feed = feed_of(inputs)
    changed = feed[name].roll(1, -1) if feed[name].numel() > 1 else feed[name] // 2
    feed[name] = changed
    moved = (*(feed[key] for key in INPUTS[:5]), type(inputs[-1])(*(feed[k] for k in INPUTS[5:])))
    out = exported.run(moved)
    assert relative(out, exported.run(inputs)) > 1e-5
    assert_is_the_reference(out, exported.model, moved)


# -- the file --------------------------------------------------------------------------------------


def test_standard_operators_of_the_asked_opset(exported: Exported) -> None:
    proto = exported.proto
    assert {(entry.domain, entry.version) for entry in proto.opset_import} == {
        ("", exported.facts["opset"])
    }
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    counted: dict[str, int] = {}
    for node in proto.graph.node:
        counted[node.op_type] = counted.get(node.op_type, 0) + 1
    assert counted == exported.facts["operators"]
    assert ("Attention" in counted) == (exported.facts["opset"] >= 23)
    onnx.checker.check_model(exported.path)


def test_inputs_and_axes_have_their_names(exported: Exported) -> None:
    graph = exported.proto.graph
    assert [value.name for value in graph.input] == list(INPUTS) == list(AXES)
    assert [value.name for value in graph.output] == [OUTPUT]
    config = exported.model.config
    fixed = {"channels": 16, "text_len": config.text_len, "text_dim": config.text_dim}
    fixed["pairs"] = config.head_dim // 2
    declared = [fixed.get(str(axis), axis) for name in INPUTS for axis in AXES[name]]
    assert [axis for value in graph.input for axis in axes_of(value)] == declared
    assert axes_of(graph.output[0]) == axes_of(graph.input[0])
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    integers = ("time", "bias_tiles", "group_index", "group_inverse")
    for name, kind in kinds.items():
        expected = onnx.TensorProto.INT64 if name in integers else onnx.TensorProto.FLOAT
        assert kind == (onnx.TensorProto.BOOL if name == "group_mask" else expected), name


def axes_of(value: Any) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_weights_lie_beside_the_graph(exported: Exported) -> None:
    names = sorted(file.name for file in exported.path.parent.iterdir())
    assert names == ["model.onnx", "model.onnx.data"]
    for tensor in exported.proto.graph.initializer:
        if onnx.TensorProto.EXTERNAL == tensor.data_location:
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == "model.onnx.data"
        else:
            assert len(tensor.SerializeToString()) < 2048, tensor.name
    weights = sum(p.numel() * p.element_size() for p in exported.model.parameters())
    assert (exported.path.parent / "model.onnx.data").stat().st_size > 0.9 * weights


def test_nothing_of_this_machine_is_in_the_file(exported: Exported) -> None:
    text = exported.path.read_bytes()
    root = Path(__file__).parents[3]
    for path in (root, Path.home(), Path(torch.__file__).parent, exported.path.parent):
        assert str(path).encode() not in text
    assert b"site-packages" not in text and b".py" not in text
    graph = exported.proto.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        assert not part.metadata_props and not part.doc_string, part.name
    assert not exported.proto.metadata_props and not graph.metadata_props
    assert not exported.proto.doc_string and not graph.doc_string


def test_the_model_comes_back_as_it_was(halved: Exported) -> None:
    assert halved.model.ops is ops.REFERENCE and halved.model.training
    assert len(halved.stages) == len(set(halved.stages)) >= 3


# -- half precision --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["no references", "one token, one image", "several seeds", "streams and seeds"]
)
def test_half_precision_is_close(halved: Exported, case: str) -> None:
    """At most twice the error of the reference itself with its matrices rounded to half; and sizes
    of 0 and 1 are ordinary ones, traced as users trace."""
    inputs = inputs_of(*CASES[case], WIDER)
    expected = reference(halved.model, inputs)
    rounded = random_model(WIDER)
    for parameter in rounded.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.half().float()
    error = relative(halved.run(inputs), expected)
    assert 1e-5 < error <= 2 * relative(reference(rounded, inputs), expected)


def test_half_precision_is_half_the_file(halved: Exported) -> None:
    kinds = {t.name: t.data_type for t in halved.proto.graph.initializer}
    count = list(kinds.values()).count(onnx.TensorProto.FLOAT16)
    matrices = [p for p in halved.model.parameters() if p.dim() > 1 and p.numel() >= 4096]
    assert count == halved.facts["half_precision_matrices"] >= len(matrices)
    full = 4 * sum(t.numel() for t in halved.model.parameters())
    full += 4 * halved.model.get_buffer("time_table").numel()
    size = (halved.path.parent / "model.onnx.data").stat().st_size
    assert 0.48 * full < size < 0.56 * full

"""Both ONNX graphs, plain and with opaque nodes, against numbers of the released model code.

One export a model and kind; cases with the same weights share it. With LUMOSX_GOLDEN_DIR there are
more. test_opaque_nodes.py has one case that is quick.
"""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from lumosx_rt.export.onnx.graph import export_onnx
from lumosx_rt.export.onnx.opaque_nodes import DOMAIN, export_plugin_onnx
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.sampling.inputs import OUTPUT
from tests.export.onnx.test_graph import relative
from tests.helpers.inputs import feed_of
from tests.reference.test_golden import INDEX, TOLERANCE, ModelCase, error

EXPORTS = {"plain": export_onnx, "plugin": export_plugin_onnx}
GATE = TOLERANCE["model_max_abs"]
CASES = [name for name, facts in INDEX["files"].items() if facts["kind"] == "model"]
QUICK = "model_c03_face_2attr.npz"
pytestmark = pytest.mark.slow


@cache
def case_of(name: str) -> ModelCase:
    return ModelCase(name)


def identity(model: LumosX) -> tuple[object, ...]:
    """What an export depends on."""
    weights = (x.contiguous().view(torch.uint8).numpy() for x in model.state_dict().values())
    return model.config, *(hash(x.tobytes()) for x in weights)


def feed_of_case(case: ModelCase) -> dict[str, np.ndarray]:
    structure = case.structure()
    narrow = type(structure)(*(t.float() if t.is_floating_point() else t for t in structure))
    given = (case.golden("x")[:, None], case.golden("t"), case.text, case.references, case.template)
    return {name: x.numpy() for name, x in feed_of((*given, narrow)).items()}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory):
    """`graph(kind, model)`: the path of an export, made once."""
    made: dict[tuple[object, ...], Path] = {}

    def export(kind: str, model: LumosX) -> Path:
        key = (kind, model.dtype, *identity(model))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(kind) / "model.onnx"
            EXPORTS[kind](model, made[key])
        return made[key]

    return export


def run(path: Path, feed: dict[str, np.ndarray]) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], feed)[0])[:, 0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", EXPORTS)
def test_a_golden_case(graph, name: str, kind: str) -> None:
    case = case_of(name)
    found = run(graph(kind, case.model), feed_of_case(case))
    worst = error(found, case.golden("out_video"))
    print(f"{name} {kind}: {worst:.1e}")
    assert worst <= GATE


def test_both_exports_are_what_they_are_called(graph) -> None:
    case = case_of(QUICK)
    counts = {}
    for kind in EXPORTS:
        nodes = onnx.load(graph(kind, case.model), load_external_data=False).graph.node
        counts[kind] = sum(node.domain == DOMAIN for node in nodes)
    assert counts["plain"] == 0 and counts["plugin"] > 5


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("model_c01", "model_c03"))])
def test_bfloat16_by_onnx_own_evaluator(graph, name: str) -> None:
    """Near what eager torch does in bfloat16: the evaluator also accumulates in it, by numpy."""
    case = case_of(name)
    half = LumosX(case.model.config, torch.bfloat16)
    half.load_state_dict(case.model.state_dict())
    exact, feed = case.golden("out_video"), feed_of_case(case)
    (found,) = ReferenceEvaluator(str(graph("plugin", half))).run([OUTPUT], feed)
    case_half = ModelCase(name)
    case_half.model = half
    with torch.no_grad():
        eager = relative(half_velocity(case_half), exact)
    graph_error = relative(torch.from_numpy(found)[:, 0], exact)
    print(f"{name} bf16: graph {graph_error:.1e}, eager {eager:.1e}")
    assert 1e-4 < eager and graph_error <= 10 * eager < 0.1


def half_velocity(case: ModelCase) -> Tensor:
    feed = {name: torch.from_numpy(x) for name, x in feed_of_case(case).items()}
    values = list(feed.values())
    structure = type(case.structure())(*values[5:])
    out: Tensor = case.model(*values[:5], structure)
    return out[:, 0]

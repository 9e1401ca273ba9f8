"""Parts of a graph, run one after the other, are the graph."""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lumosx_rt.artifact.manifest import GRAPH
from lumosx_rt.export.onnx import split as cut
from lumosx_rt.export.onnx.named_values import FIRST, keys_of, marked, video_of
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.ops import REFERENCE
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.sampling.inputs import OUTPUT
from tests.conftest import micro_config
from tests.export.onnx.test_graph import CASES, assert_is_the_reference, inputs_of, reference
from tests.helpers.budget import assert_within_budget, in_float64, widened
from tests.helpers.inputs import feed_of

CONFIG = micro_config()
BLOCKS = CONFIG.num_layers
WAYS = {"keys": (True, False), "steps": (False, True), "both": (True, True)}
Values = dict[str, Any]


@dataclass(repr=False, eq=False)
class Marked:
    model: LumosX
    path: Path

    @cached_property
    def proto(self) -> Any:
        return cut.load(self.path)

    @cache  # noqa: B019  # a test module's worth of sessions
    def sessions(self, way: str) -> dict[str, Any]:
        """The parts of a way, or the whole graph, in the order they run in."""
        if way == "uncut":
            return {way: self.session(self.proto)}
        keys, steps = WAYS[way]
        parts = cut.parts_of(self.proto, keys=keys, steps=steps)
        return {name: self.session(part) for name, part in parts.items()}

    def session(self, part: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.path.parent)
        )
        return onnxruntime.InferenceSession(
            part.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, way: str, part: str, values: Values) -> Values:
        session = self.sessions(way)[part]
        names = [value.name for value in session.get_outputs()]
        feed = {value.name: values[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(names, feed), strict=True))

    def velocity(self, way: str, values: Values) -> Any:
        for part in self.sessions(way):
            values = values | self.run(way, part, values)
        return values[OUTPUT]


@pytest.fixture(scope="module")
def graph(micro: Any, micro_bundle: Path) -> Marked:
    """That of the micro engine."""
    return Marked(load_transformer(micro_bundle), micro.folder / GRAPH)


def values_of(keys: list[str], seeds: int) -> Values:
    """A call's inputs, and what stands for the video in groups of references."""
    feed = {n: x.numpy() for n, x in feed_of(inputs_of(keys, seeds, CONFIG)).items()}
    streams, seeds, _, frames, rows, columns = feed["latents"].shape
    tokens = frames * -(-rows // 2) * -(-columns // 2)
    none = np.zeros((streams * seeds, tokens, CONFIG.num_heads, CONFIG.head_dim), np.float32)
    video = {name: none for block in range(BLOCKS) for name in video_of(block)}
    return feed | video | {cut.PREVIOUS: np.zeros((1, 1, 1), np.float32)}


def assert_is_the_graph(graph: Marked, case: str, way: str) -> torch.Tensor:
    """At most twice as far from the reference in float64 as the whole is; returns that."""
    values = values_of(*CASES[case])
    whole, parts = (torch.from_numpy(graph.velocity(name, values)) for name in ("uncut", way))
    exact = reference(in_float64(graph.model), widened(inputs_of(*CASES[case], CONFIG)))
    assert_within_budget(way, parts, whole, exact)
    return exact


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", [case for case in CASES if "off" not in case])
def test_all_parts_after_each_other_are_the_graph(graph: Marked, case: str, way: str) -> None:
    assert assert_is_the_graph(graph, case, way).std() > 0.1


def test_blocks_apart_do_with_references_that_see_the_video(graph: Marked) -> None:
    assert_is_the_graph(graph, "visibility off", "steps")


def test_what_stands_for_the_video_is_read_by_no_group(graph: Marked) -> None:
    """And would be, where references see it."""

    def keys(case: str, video: float) -> Values:
        values = values_of(*CASES[case])
        names = [name for block in range(BLOCKS) for name in video_of(block)]
        instead = {name: values[name] + np.float32(video) for name in names}
        return graph.run("keys", "keys", values | instead)

    for name, value in keys("streams and seeds", 0).items():
        assert np.array_equal(value, keys("streams and seeds", 7)[name])
    seeing = keys("visibility off", 0), keys("visibility off", 7)
    assert any(np.abs(seeing[0][name] - seeing[1][name]).max() > 0.1 for name in seeing[0])


def test_the_change_is_that_of_the_first_blocks_residual(graph: Marked) -> None:
    """Against hooks on the reference: the largest of all streams and seeds."""
    inputs = inputs_of(["2x3x9+1+2.1"] * 2, 2, CONFIG)
    values = values_of(["2x3x9+1+2.1"] * 2, 2)
    exact = residual_of(in_float64(graph.model), widened(inputs))
    residual = exact.float().numpy()
    noise = np.random.default_rng(0).normal(size=residual.shape) * residual.std()
    previous = (residual + 0.2 * noise).astype(np.float32)
    previous[2] *= 3
    made = graph.run("steps", "first", values | {cut.PREVIOUS: previous})
    wide = previous.astype(np.float64)
    shares = [
        np.abs(a - b).mean() / np.abs(b).mean() for a, b in zip(exact.numpy(), wide, strict=True)
    ]
    found, plain = torch.from_numpy(made[cut.RESIDUAL]), residual_of(graph.model, inputs)
    assert_within_budget("residual", found, plain, exact, times=4)  # as of a whole graph
    assert float(made[cut.CHANGE]) == pytest.approx(max(shares), rel=1e-5)
    assert max(shares) > 1.2 * min(shares)


def residual_of(model: LumosX, inputs: tuple[Any, ...]) -> torch.Tensor:
    """What the first block adds."""
    seen: list[torch.Tensor] = []

    def entered(module: Any, given: tuple[Any, ...]) -> None:
        x, delta, gate = given[0]
        seen.append(x if delta is None else x + gate * delta)

    handles = [b.register_forward_pre_hook(entered) for b in model.blocks[:2]]
    reference(model, inputs)
    for handle in handles:
        handle.remove()
    return seen[1] - seen[0]


def test_the_keys_know_nothing_of_the_noise(graph: Marked) -> None:
    parts = cut.parts_of(graph.proto, keys=True, steps=True)
    values = values_of(*CASES["unequal groups"])
    noise, late = {"latents": values["latents"][::-1].copy()}, {"time": values["time"] // 2}
    one, other, later = (graph.run("both", "keys", values | new) for new in ({}, noise, late))
    assert one.keys() == {name for block in range(BLOCKS) for name in keys_of(block)}
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert all(not np.array_equal(one[name], later[name]) for name in one)
    sizes = {name: len(part.graph.node) for name, part in parts.items()}
    assert sizes["head"] < sizes["first"] and sizes["rest"] < len(graph.proto.graph.node)


def test_marks_leave_names_and_nothing_else(graph: Marked) -> None:
    assert cut.blocks_of(graph.proto) == BLOCKS
    assert {node.domain for node in graph.proto.graph.node} == {""}
    assert [(o.domain, o.version) for o in graph.proto.opset_import] == [("", 23)]
    onnx.checker.check_model(graph.path)
    case = CASES["unequal groups"]
    found = torch.from_numpy(graph.velocity("uncut", values_of(*case)))
    assert_is_the_reference(found, graph.model, inputs_of(*case, CONFIG))


@pytest.mark.parametrize(("left", "keys", "steps"), [(0, True, False), (1, False, True)])
def test_a_graph_without_enough_marks_is_not_cut(
    graph: Marked, left: int, keys: bool, steps: bool
) -> None:
    proto = cut.load(graph.path)
    for node in proto.graph.node:
        for i, name in enumerate(node.output):
            if name == keys_of(left)[0]:
                node.output[i] = "nameless"
    with pytest.raises(ValueError, match=f"{left} marked blocks"):
        cut.parts_of(proto, keys=keys, steps=steps)


def test_the_model_is_as_it_was(graph: Marked) -> None:
    with marked(graph.model, REFERENCE):
        assert any(module._forward_pre_hooks for module in graph.model.modules())
    assert not any(module._forward_pre_hooks for module in graph.model.modules())
    names = [name for node in graph.proto.graph.node for name in node.output]
    assert names.count(FIRST) == 1

"""What exports share: the shapes that compiled code trusts, and how operations are spelled."""

from typing import Any

import pytest
import torch

from lumosx_rt.export.onnx.ops import attend_padded
from lumosx_rt.export.program import trace
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.ops import REFERENCE, Ops, attend
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.inputs import AXES, INPUTS, LIMITS, check_shapes
from tests.helpers.inputs import feed_of, model_inputs
from tests.helpers.tracing import in_less_time

CONFIG = LumosXConfig(dim=48, num_heads=2, ffn_dim=64, num_layers=1, text_dim=16, text_len=12)


def shapes(key: str, streams: int = 2, seeds: int = 3) -> dict[str, tuple[int, ...]]:
    inputs = model_inputs(CONFIG, [SceneLayout.from_key(key)] * streams, seeds)
    return {name: tuple(tensor.shape) for name, tensor in feed_of(inputs).items()}


@pytest.mark.parametrize("key", ["2x3x5+0+-", "1x1x1+0+1", "2x11x9+1+2.3", "2x3x4+1+2+novis"])
@pytest.mark.parametrize("streams, seeds", [(1, 1), (2, 3)])
def test_the_shapes_of_every_layout_fit(key: str, streams: int, seeds: int) -> None:
    check_shapes(shapes(key, streams, seeds))


@pytest.mark.parametrize("name", INPUTS)
def test_an_axis_that_differs_from_the_others_is_refused(name: str) -> None:
    right = shapes("2x3x9+1+2.2")
    for index, axis in enumerate(AXES[name]):
        sole = sum(axis in axes for axes in AXES.values()) == 1
        for by in (-1,) if sole and axis in LIMITS else (1, -1):
            shape = list(right[name])
            shape[index] = 0 if sole else shape[index] + by
            if sole and axis not in LIMITS:
                continue  # a width that no other input shares, like that of the text
            with pytest.raises(LumosXError, match=name if axis == "time" else "does not fit"):
                check_shapes(right | {name: tuple(shape)})
    with pytest.raises(LumosXError, match=name):
        check_shapes(right | {name: (*right[name], 1)})


def test_an_axis_beyond_what_was_traced_is_refused() -> None:
    with pytest.raises(LumosXError, match="seeds"):
        check_shapes(shapes("2x3x5+0+-", seeds=LIMITS["seeds"][1] + 1))


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = LumosX(CONFIG).train()
    with in_less_time():
        program = trace(model, Ops(norm_modulate=REFERENCE.norm_modulate))
    assert model.ops is REFERENCE and model.training
    assert len(program.graph_signature.user_inputs) == len(INPUTS)
    assert len(program.graph_signature.user_outputs) == 1


@pytest.mark.parametrize("queries", [0, 1, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_a_query_more_changes_no_answer(queries: int, masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 8, dtype=torch.float64) for n in (queries, 5, 5))
    mask: Any = torch.randn(2, 3, queries, 5, dtype=torch.float64) if masked else None
    actual = attend_padded(q, k, v, mask)
    assert actual.shape == q.shape
    if queries:
        torch.testing.assert_close(actual, attend(q, k, v, mask), rtol=1e-12, atol=1e-12)

"""Cross-attention and the bias table against float64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lumosx_rt.kernels.relational_cross_attention import bias_table, relational_cross_attention
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import CrossAttention, WordBias
from tests.helpers.budget import assert_gradients_within_budget, assert_within_budget, relative
from tests.kernels.cases import HALF, HALVES, LAYOUTS, Case

BIASED = [
    pytest.param(name, marks=pytest.mark.slow if name.startswith("vis") else [])
    for name in LAYOUTS
    if name != "no references"
]


def run(op, case: Case, bias: WordBias | None, double: bool = False):
    x = (case.video.q, case.condition.q, case.k, case.v)
    x = tuple(t.double() for t in x) if double else x
    structure = case.exact_structure() if double else case.structure
    if bias is not None and double:
        bias = WordBias(bias.template.double(), bias.ratio)
    return op(CrossAttention(*x, bias, structure))


def assert_is_right(case: Case) -> None:
    results = (
        run(relational_cross_attention, case, case.bias),
        run(ops.cross_attention, case, case.bias),
        run(ops.cross_attention, case, case.bias, double=True),
    )
    for part, *each in zip(("video", "condition"), *results, strict=True):
        assert_within_budget(part, *each)


@pytest.mark.parametrize("dtype, name", HALVES)
def test_relational_cross_attention(dtype: torch.dtype, name: str) -> None:
    case = Case(name, dtype, heads=2 if name == "groups of one to four" else 1)
    assert_is_right(case)


@pytest.mark.parametrize(
    "text_len, dtype",
    [
        pytest.param(1, HALF[0], marks=pytest.mark.slow),
        pytest.param(32, HALF[1], marks=pytest.mark.slow),
        (40, HALF[0]),
    ],
)
def test_texts_that_end_beside_and_on_the_tiles(text_len: int, dtype: torch.dtype) -> None:
    case = Case("frames of one tile", dtype, heads=1, head_dim=32, text_len=text_len, seeds=1)
    assert_is_right(case)


@pytest.mark.parametrize("name", BIASED)
def test_bias_table(name: str) -> None:
    case = Case(name, heads=1)
    table = bias_table(case.condition.q, case.k, case.bias, case.structure)
    wide = (case.condition.q.double(), case.k.double())
    template = WordBias(case.bias.template.double(), case.bias.ratio)
    exact = ops.bias_table(*wide, template, case.exact_structure())
    plain = ops.bias_table(case.condition.q, case.k, case.bias, case.structure)
    assert_within_budget("table", table, plain, exact)
    assert exact.abs().max() > 0.1


@pytest.mark.slow
def test_without_bias_and_with_an_empty_template() -> None:
    case = Case("frames of one tile", seeds=1)
    nothing = WordBias(torch.zeros_like(case.bias.template), 0.7)
    plain = run(relational_cross_attention, case, None)
    empty = run(relational_cross_attention, case, nothing)
    expected = run(ops.cross_attention, case, None)
    exact = run(ops.cross_attention, case, None, double=True)
    for found in (plain, empty):
        for part, *each in zip(("video", "condition"), found, expected, exact, strict=True):
            assert_within_budget(part, *each)
    biased = run(relational_cross_attention, case, case.bias)
    assert torch.equal(biased[0], plain[0])
    assert relative(biased[1], plain[1].double()) > 1e-2  # control: the bias does something


@pytest.mark.slow
def test_without_condition_queries() -> None:
    case = Case("frames of one tile", seeds=1)
    call = CrossAttention(case.video.q, None, case.k, case.v, case.bias, case.structure)
    video, condition = relational_cross_attention(call)
    assert condition is None
    assert torch.equal(video, run(relational_cross_attention, case, case.bias)[0])


def test_gradients_are_those_of_the_reference() -> None:
    """The bias is part of it: gradients flow through the pooled queries too."""
    case = Case("wide frames", heads=1, head_dim=10, seeds=1)

    def loss(op, *operands: Tensor) -> Tensor:
        *x, template = operands
        bias = WordBias(template, case.bias.ratio)
        video, condition = op(CrossAttention(*x, bias, case.structure_in(template.dtype)))
        return video.sin().sum() + condition.cos().sum()

    operands = (case.video.q, case.condition.q, case.k, case.v, case.bias.template)
    names = ("video.q", "condition.q", "k", "v", "template")
    losses = (partial(loss, op) for op in (relational_cross_attention, ops.cross_attention))
    assert_gradients_within_budget(*losses, dict(zip(names, operands, strict=True)))


def test_what_it_does_not_take_is_said() -> None:
    case = Case("wide frames")
    q, cq, k, v = case.video.q, case.condition.q, case.k, case.v
    call = CrossAttention(q, cq, k, v, case.bias, case.structure)
    with pytest.raises(ValueError, match="`v` must have shape"):
        relational_cross_attention(call._replace(v=v[:, 1:]))
    with pytest.raises(ValueError, match="`bias.template` must have shape"):
        short = WordBias(case.bias.template[..., 1:], 0.5)
        relational_cross_attention(call._replace(bias=short))
    with pytest.raises(ValueError, match="`condition_q` must have shape"):
        relational_cross_attention(call._replace(condition_q=cq[:, 1:]))

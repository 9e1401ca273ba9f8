"""The fused norm against float64; every combination of what may be absent."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from lumosx_rt.kernels.norm_modulate import (
    norm_modulate,
    norm_modulate_quantized,
    quantize_rows,
    rows_in_e4m3,
)
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import NormModulate
from tests.helpers.budget import (
    assert_gradients_within_budget,
    assert_same_codes,
    assert_within_budget,
    relative,
)
from tests.kernels.cases import HALF, random

EPS = 1e-6


def inputs(dtype: torch.dtype, batch: int = 2, tokens: int = 7, dim: int = 44) -> list[Tensor]:
    x = random(batch, tokens, dim, seed=1) * 3 + 1
    x[0, 0] = 2 + x[0, 0] * 1e-3  # far from zero mean, and eps counts
    delta = random(batch, tokens, dim, seed=2, dtype=dtype)
    return [x, delta, *(random(batch, 1, dim, seed=i) for i in (3, 4, 5))]


def in_float64(call: NormModulate) -> NormModulate:
    wide = (x.double() if isinstance(x, Tensor) else x for x in call)
    return NormModulate(*wide)._replace(dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(
    "present", list(itertools.product([True, False], repeat=3)), ids=lambda p: str(p)
)
def test_norm_modulate(present: tuple[bool, bool, bool], dtype: torch.dtype) -> None:
    with_delta, with_gate, with_norm = present
    x, delta, gate, scale, shift = inputs(dtype)
    given: list[Tensor | None] = [x, delta, gate, scale, shift]
    if not with_delta:
        given[1] = None
    if not with_gate:
        given[2] = None
    if not with_norm:
        given[3] = given[4] = None
    call = NormModulate(*given, EPS, dtype)
    moved, y = norm_modulate(call)
    plain = ops.norm_modulate(call)
    exact = ops.norm_modulate(in_float64(call))
    assert_within_budget("x", moved, plain[0], exact[0])
    assert_within_budget("y", y, plain[1], exact[1])
    if not with_delta:
        assert moved is x


def test_modulation_may_be_a_weight_or_shared_by_the_batch() -> None:
    x, delta, gate, scale, shift = inputs(torch.float32)
    call = NormModulate(x, delta, gate[:1], scale[0, 0], shift[0, 0], EPS, torch.float32)
    one = norm_modulate(call)
    full = (row[:1].expand(2, 1, -1) for row in (gate, scale, shift))
    call = NormModulate(x, delta, *full, EPS, torch.float32)
    two = ops.norm_modulate(call)
    exact = ops.norm_modulate(in_float64(call))
    for name, *each in zip("xy", one, two, exact, strict=True):
        assert_within_budget(name, *each)


def test_quantized_rows_are_the_exact_ones_rounded_to_e4m3() -> None:
    call = NormModulate(*inputs(torch.bfloat16), EPS, torch.float32)
    moved, rows = norm_modulate_quantized(call)
    exact_x, exact_y = ops.norm_modulate(in_float64(call))
    plain_x, plain_y = ops.norm_modulate(call)
    assert_within_budget("x", moved, plain_x, exact_x)
    amax = exact_y.abs().amax(-1, keepdim=True)
    plain = quantize_rows(plain_y)
    assert_within_budget("scale", rows.scale, plain.scale, amax / 448)
    assert_same_codes("rows", rows.values, plain.values, exact_y / amax * 448)
    found = rows.values.double() * rows.scale.double()
    allowed = 2 * relative(plain.values.double() * plain.scale.double(), exact_y)
    assert relative(found, exact_y) <= allowed < 0.1


def test_rows_in_one_pass_are_the_plain_ones() -> None:
    y = random(2, 3, 5, 48, seed=1, dtype=torch.bfloat16) * 10
    found, plain = rows_in_e4m3(y), quantize_rows(y)
    exact = y.double().abs().amax(-1, keepdim=True) / 448
    assert_within_budget("scale", found.scale, plain.scale, exact)
    assert_same_codes("rows", found.values, plain.values, y / exact)


def test_a_row_of_zeros_quantizes_to_zeros() -> None:
    x, _, _, scale, shift = inputs(torch.bfloat16)
    call = NormModulate(x, None, None, scale * 0, shift * 0, EPS, torch.bfloat16)
    _, rows = norm_modulate_quantized(call)
    assert rows.values.float().eq(0).all() and rows.scale.isfinite().all()


def test_no_tokens() -> None:
    x, _, _, scale, shift = inputs(torch.float32)
    call = NormModulate(x[:, :0], None, None, scale, shift, EPS, torch.bfloat16)
    moved, y = norm_modulate(call)
    assert moved.shape == y.shape == (2, 0, 44)


def test_gradients_are_those_of_the_reference() -> None:
    names = ("x", "delta", "gate", "scale", "shift")

    def loss(run, *operands: Tensor) -> Tensor:
        moved, y = run(NormModulate(*operands, EPS, operands[0].dtype))
        return moved.sin().sum() + y.cos().sum()

    losses = (partial(loss, run) for run in (norm_modulate, ops.norm_modulate))
    given = dict(zip(names, inputs(torch.float32, tokens=3), strict=True))
    assert_gradients_within_budget(*losses, given)


def test_what_it_does_not_take_is_said() -> None:
    x, delta, *rows = inputs(torch.float32)
    call = NormModulate(x, delta, *rows, EPS, torch.float32)
    with pytest.raises(ValueError, match=r"`gate` must have shape \[batch or 1, 1, dim\]"):
        norm_modulate(call._replace(gate=x))
    with pytest.raises(ValueError, match="`delta` must have shape"):
        norm_modulate(call._replace(delta=delta[:, :2]))
    with pytest.raises(ValueError, match="together"):
        norm_modulate(call._replace(shift=None))

"""Norm and rotation against float64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lumosx_rt.kernels.qk_norm_rope import qk_norm_rope
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import QkNormRope
from lumosx_rt.reference.mechanisms.lumosx.structure import rope_table
from tests.helpers.budget import assert_gradients_within_budget, assert_within_budget
from tests.kernels.cases import HALF, random

EPS = 1e-6
PLACES = torch.tensor([(0, 0, 0), (3, 1, 2), (20, 29, 51), (22, 119, 207), (1, 0, 1)])


def tables(head_dim: int, batch: int, dtype: torch.dtype) -> Tensor:
    """[2, batch, tokens, pairs], every row of the batch at places of its own."""
    return rope_table(torch.stack([PLACES.roll(i, 0) for i in range(batch)]), head_dim, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("heads, head_dim", [(2, 24), (3, 10), (1, 32)])
@pytest.mark.parametrize("normed, turned", [(True, True), (True, False), (False, True)])
def test_qk_norm_rope(
    normed: bool, turned: bool, heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    x = random(2, 5, heads * head_dim, seed=1, dtype=dtype) * 4
    x[0, 0] *= 1e-3  # small enough for eps to count
    weight = (random(heads * head_dim, seed=2) + 1).to(dtype) if normed else None
    rope = tables(head_dim, 2, torch.float64) if turned else None
    wide = None if weight is None else weight.double()
    exact = ops.qk_norm_rope(QkNormRope(x.double(), wide, rope, heads, EPS))
    single = None if rope is None else rope.float()
    call = QkNormRope(x, weight, single, heads, EPS)
    assert_within_budget("y", qk_norm_rope(call), ops.qk_norm_rope(call), exact)


def test_one_table_serves_a_batch() -> None:
    x = random(3, 5, 48, seed=1)
    rope = tables(24, 1, torch.float32)
    call = QkNormRope(x, None, rope, 2, EPS)
    exact = ops.qk_norm_rope(call._replace(x=x.double(), rope=rope.double()))
    assert_within_budget("y", qk_norm_rope(call), ops.qk_norm_rope(call), exact)


def test_neither_norm_nor_rotation_is_a_view() -> None:
    x = random(1, 3, 48, seed=1)
    found = qk_norm_rope(QkNormRope(x, None, None, 2, EPS))
    assert torch.equal(found, x.unflatten(-1, (2, 24)))


def test_no_tokens() -> None:
    rope = tables(24, 1, torch.float32)[:, :, :0]
    call = QkNormRope(torch.empty(1, 0, 48), None, rope, 2, EPS)
    assert qk_norm_rope(call).shape == (1, 0, 2, 24)


def test_gradients_are_those_of_the_reference() -> None:
    given = {"x": random(2, 5, 48, seed=1), "weight": random(48, seed=2) + 1}
    rope = tables(24, 1, torch.float32)

    def loss(run, x: Tensor, weight: Tensor) -> Tensor:
        return run(QkNormRope(x, weight, rope.to(x.dtype), 2, EPS)).sin().sum()

    losses = (partial(loss, run) for run in (qk_norm_rope, ops.qk_norm_rope))
    assert_gradients_within_budget(*losses, given)


def test_what_it_does_not_take_is_said() -> None:
    x = random(2, 5, 48, seed=1)
    with pytest.raises(ValueError, match="even heads"):
        qk_norm_rope(QkNormRope(x, None, tables(24, 1, torch.float32), 5, EPS))
    with pytest.raises(ValueError, match="`rope` must have 1 or 2 entries"):
        qk_norm_rope(QkNormRope(x, None, tables(24, 3, torch.float32), 2, EPS))
    with pytest.raises(ValueError, match="`weight` must have shape"):
        qk_norm_rope(QkNormRope(x, x[0, 0, :24], None, 2, EPS))

"""Controls of the error budget: what processors do differently passes, a real error fails."""

import pytest
import torch

from tests.helpers.budget import (
    FLIPS,
    assert_gradients_within_budget,
    assert_same_codes,
    assert_within_budget,
    places,
)

E4M3 = torch.float8_e4m3fn
EPS = torch.finfo(torch.float32).eps


def unrounded(count: int = 20_000) -> torch.Tensor:
    """Values whose largest is what e4m3 ends at."""
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    return x / x.abs().max() * 448


def test_codes_are_counted_from_zero() -> None:
    values = torch.tensor([-448.0, -(2.0**-9), -0.0, 0.0, 2.0**-9, 1.0, 1.125, 448.0]).to(E4M3)
    assert places(values).tolist() == [-126, -1, 0, 0, 1, 56, 57, 126]


def test_what_another_order_of_sums_flips_passes() -> None:
    x = unrounded()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * 4 * EPS * 448
    found = assert_same_codes("x", (x + noise).clamp(-448, 448).to(E4M3), x.to(E4M3), x)
    assert 0 < found < FLIPS * x.numel()
    boundary = torch.tensor([1.0625, 448.0])
    one = torch.tensor([1.125, 448.0]).to(E4M3)
    assert assert_same_codes("x", one, boundary.to(E4M3), boundary) == 1


@pytest.mark.parametrize("factor", [1.001, 1.01, 0.5, -1.0])
def test_a_wrong_scale_fails(factor: float) -> None:
    x = unrounded()
    with pytest.raises(AssertionError, match="flipped|codes apart|off a boundary"):
        assert_same_codes("x", (x * factor).clamp(-448, 448).to(E4M3), x.to(E4M3), x)


def test_one_wrong_code_fails() -> None:
    x = unrounded()
    codes = x.to(E4M3)
    inside = int((x - 72).abs().argmin())  # a code itself, so far from both boundaries
    for away, said in ((1, "off a boundary"), (2, "2 codes apart")):
        wrong = codes.clone()
        wrong.view(torch.uint8)[inside] += away
        with pytest.raises(AssertionError, match=said):
            assert_same_codes("x", wrong, codes, x)


def test_too_many_flips_fail_even_where_boundaries_are_near() -> None:
    boundary = torch.full((1000,), 1.0625)
    found, expected = torch.full((1000,), 1.125), torch.full((1000,), 1.0)
    with pytest.raises(AssertionError, match="1000 of 1000 flipped, allowed 2"):
        assert_same_codes("x", found.to(E4M3), expected.to(E4M3), boundary)


def test_twice_the_error_of_plain_torch_is_allowed_and_not_more() -> None:
    exact = unrounded().double()
    plain = (exact * (1 + 1e-5)).float()
    assert_within_budget("x", (exact * (1 + 1.9e-5)).float(), plain, exact)
    with pytest.raises(AssertionError, match="error 2.10e-05, allowed 2.00e-05"):
        assert_within_budget("x", (exact * (1 + 2.1e-5)).float(), plain, exact)
    with pytest.raises(AssertionError, match="not finite"):
        assert_within_budget("x", plain * torch.nan, plain, exact)


def test_where_plain_torch_is_exact_a_few_roundings_are_allowed() -> None:
    exact = unrounded().double()
    plain = exact.float()
    assert_within_budget("x", plain * (1 + 2 * EPS), plain, exact)
    with pytest.raises(AssertionError, match="allowed"):
        assert_within_budget("x", plain * (1 + 8 * EPS), plain, exact)


def test_a_wrong_gradient_is_named() -> None:
    given = {"a": unrounded(50) / 448, "b": unrounded(40) / 448}

    def right(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.sin().sum() + b.cos().sum()

    def wrong(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.sin().sum() + (b * 1.00001).cos().sum()

    assert_gradients_within_budget(right, right, given)
    with pytest.raises(AssertionError, match="gradient by b"):
        assert_gradients_within_budget(wrong, right, given)

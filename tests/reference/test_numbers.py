"""Numbers of any kind: the same integers and floats, or refused by name."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.numbers import real_number, whole_number, whole_numbers


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), torch.tensor(7), np.array(7)])
def test_integers_of_every_kind(value):
    found = whole_number(value, "steps", 1, 10)
    assert found == 7 and type(found) is int


@pytest.mark.parametrize(
    "value",
    ["7", 7.0, 7.5, None, True, [7], np.float32(7), torch.tensor(7.0), torch.zeros(2), b"7", 0, 11],
)
def test_what_is_no_integer_in_range_is_refused(value):
    with pytest.raises(LumosXError, match="^steps: got .*accepted are integers 1 to 10$"):
        whole_number(value, "steps", 1, 10)


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float16(2), torch.tensor(2.0), np.int8(2), Decimal(2), Fraction(2)]
)
def test_numbers_of_every_kind(value):
    found = real_number(value, "shift", 0, 10)
    assert found == 2 and type(found) is float


@pytest.mark.parametrize(
    "value",
    ["2", None, True, float("nan"), float("inf"), 1e30, -1, 2j, [2], torch.zeros(3), 10**400, b"2"],
)
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(LumosXError, match="^shift: got .*accepted are numbers 0 to 10$"):
        real_number(value, "shift", 0, 10)


@pytest.mark.parametrize(
    "values", [[1, 2], (1, 2), range(1, 3), np.arange(1, 3), torch.arange(1, 3), iter([1, 2])]
)
def test_integers_in_every_list(values):
    assert whole_numbers(values, "seeds", 0, 9, 4) == (1, 2)


@pytest.mark.parametrize(
    "values",
    [3, "12", b"12", None, {1: 2}, [1.5], [[1]], ["1"], np.array(3), torch.tensor(3), [-1], [10]],
)
def test_what_is_no_list_of_integers_is_refused(values):
    with pytest.raises(LumosXError, match="^seeds: got "):
        whole_numbers(values, "seeds", 0, 9, 4)


def test_a_list_without_end_is_refused():
    def endless():
        while True:
            yield 1

    with pytest.raises(LumosXError, match="seeds: more than 4"):
        whole_numbers(endless(), "seeds", 0, 9, 4)

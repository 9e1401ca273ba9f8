"""Numbers that people give, of any kind: checked, and made plain."""

import math
import operator
from collections.abc import Iterable
from itertools import islice
from typing import Any

from lumosx_rt.reference.errors import BadInput


def whole_number(value: Any, what: str, least: int, most: int) -> int:
    """Return an integer of Python, numpy or torch as an int. Raises LumosXError for all else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or not least <= found <= most:
        raise BadInput(f"{what}: got {_shown(value)}, accepted are integers {least} to {most}")
    return found


def real_number(value: Any, what: str, least: float, most: float) -> float:
    """Return a number of any kind as a finite float. Raises LumosXError for all else."""
    try:
        if isinstance(value, str | bytes | bytearray | bool):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = math.nan
    if not least <= found <= most:
        raise BadInput(f"{what}: got {_shown(value)}, accepted are numbers {least:g} to {most:g}")
    return found


def whole_numbers(values: Any, what: str, least: int, most: int, count: int) -> tuple[int, ...]:
    """Return a list, array or tensor of at most `count` integers as a tuple. Raises LumosXError."""
    expected = f"accepted is a list of integers, like {what}=[3]"
    if isinstance(values, str | bytes | bytearray | dict) or not isinstance(values, Iterable):
        raise BadInput(f"{what}: got {_shown(values)}, {expected}")
    try:
        found = list(islice(values, count + 1))
    except (TypeError, RuntimeError):  # an array or a tensor without axes
        raise BadInput(f"{what}: got {_shown(values)}, {expected}") from None
    if len(found) > count:
        raise BadInput(f"{what}: more than {count}, accepted are at most {count}")
    return tuple(whole_number(value, what, least, most) for value in found)


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, str | int | float) else f"{value!s:.60}"

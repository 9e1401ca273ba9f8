"""What the null GPU has counted, and the form of what a stage finds."""

import ctypes
from typing import Any

GIB = 2**30
Facts = dict[str, Any]


def counted(name: str) -> int:
    """A count of the null GPU: launches, driver_launches, refused, most."""
    function = getattr(ctypes.CDLL(None), f"nullgpu_{name}")
    function.restype = ctypes.c_long
    return int(function())

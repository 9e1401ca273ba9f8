"""A GPU made the current one of a thread, and put back: its primary context, which torch shares."""

from collections.abc import Iterator
from contextlib import contextmanager

from lumosx_rt.cuda.driver import call


@contextmanager
def current(index: int = 0) -> Iterator[None]:
    """Have this GPU's primary context inside the block. Raises LumosXError where there is none."""
    device = call("cuDeviceGet", index)
    context = call("cuDevicePrimaryCtxRetain", device)
    try:
        call("cuCtxPushCurrent", context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")
    finally:
        call("cuDevicePrimaryCtxRelease", device)

"""What the driver says of a GPU: for the doctor, and for plans of memory."""

from typing import Any, NamedTuple

from lumosx_rt.cuda.device import current
from lumosx_rt.cuda.driver import bindings, call


class GpuFacts(NamedTuple):
    """A GPU. driver: the newest CUDA that it takes, like "13.0"."""

    name: str
    capability: tuple[int, int]
    processors: int
    l2_bytes: int
    total_bytes: int
    free_bytes: int
    """Of all processes; what this one holds is not free."""
    driver: str


def gpu_facts(index: int = 0) -> GpuFacts:
    """Ask the driver about a GPU. Raises LumosXError where there is none."""
    names = bindings().CUdevice_attribute
    device = call("cuDeviceGet", index)

    def attribute(name: str) -> int:
        found = getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call("cuDeviceGetAttribute", found, device))

    free, total = memory(index)
    version = int(call("cuDriverGetVersion"))
    return GpuFacts(
        name=_text(call("cuDeviceGetName", 256, device)),
        capability=(
            attribute("COMPUTE_CAPABILITY_MAJOR"),
            attribute("COMPUTE_CAPABILITY_MINOR"),
        ),
        processors=attribute("MULTIPROCESSOR_COUNT"),
        l2_bytes=attribute("L2_CACHE_SIZE"),
        total_bytes=total,
        free_bytes=free,
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


def memory(index: int = 0) -> tuple[int, int]:
    """Return the free and all bytes of a GPU. Raises LumosXError where there is none."""
    with current(index):
        free, total = call("cuMemGetInfo")
    return int(free), int(total)


def _text(name: Any) -> str:
    """A C string of fixed length."""
    return bytes(name).split(b"\0")[0].decode(errors="replace")

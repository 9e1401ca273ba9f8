"""Calls of the CUDA driver through cuda-python, with its errors in words.

The driver's own functions alone (`cuda.bindings.driver`): a runtime beside torch's would be a
second one. They act on the GPU's primary context, which torch and TensorRT share.
"""

from functools import cache
from typing import Any

from lumosx_rt.reference.errors import TooLittleMemory, Unsupported

_INSTALL = "pip install 'cuda-python>=13' on a machine with an NVIDIA driver"


@cache
def bindings() -> Any:
    """Return `cuda.bindings.driver`, initialised. Raises LumosXError without it or a driver."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise Unsupported(f"cuda-python is not installed ({error}); {_INSTALL}") from None
    try:
        _checked(driver, "cuInit", driver.cuInit(0))
    except RuntimeError as error:  # libcuda is not there
        reason = next(iter(str(error).splitlines()), "no reason was given")
        raise Unsupported(f"the CUDA driver cannot be loaded ({reason}); {_INSTALL}") from None
    return driver


def call(name: str, *arguments: Any) -> Any:
    """Call a driver function; returns its result: nothing, one value, or a tuple of several.

    name: like "cuMemGetInfo". Raises LumosXError with the driver's name and words of an error,
    TooLittleMemory where memory is what lacks.
    """
    driver = bindings()
    return _checked(driver, name, getattr(driver, name)(*arguments))


def _checked(driver: Any, name: str, returned: tuple[Any, ...]) -> Any:
    error, *values = returned
    if int(error):
        said = f"CUDA's {name} failed: {_words(driver, error)}"
        kind = TooLittleMemory if error.name == "CUDA_ERROR_OUT_OF_MEMORY" else Unsupported
        raise kind(said)
    return values[0] if len(values) == 1 else tuple(values) or None


def _words(driver: Any, error: Any) -> str:
    """What the driver calls an error and says of it; its number alone where it knows none."""
    (found, text) = driver.cuGetErrorString(error)
    words = "" if int(found) or not text else f" ({text.decode(errors='replace')})"
    return f"{error.name}{words}"

"""Run by test_stubs.py in a process of its own: type stubs of one TensorRT's C++ bindings."""

import ast
import keyword
import re
import sys
from pathlib import Path

from pybind11_stubgen import main

from tests.kernels.plugged import bindings

MODULES = {
    "tensorrt-rtx": "tensorrt_rtx_bindings.tensorrt_rtx",
    "tensorrt": "tensorrt_bindings.tensorrt",
}


def write_stubs(backend: str, folder: Path) -> None:
    if backend == "tensorrt":
        bindings(folder)
    else:
        import tensorrt_rtx  # noqa: F401
    sys.argv = ["stubgen", MODULES[backend], "-o", str(folder), "--ignore-all-errors"]
    main()
    for stub in folder.glob("*/*.pyi"):
        stub.write_text(parsable(stub.read_text()))


def parsable(stub: str) -> str:
    """What C++ allows and Python does not, mended: names of parameters, defaults in the middle."""
    lines = _NAMED_LIKE_KEYWORDS.sub(r"\1_:", stub).splitlines()
    while True:
        try:
            ast.parse("\n".join(lines))
            return "\n".join(lines)
        except SyntaxError as error:
            assert error.lineno is not None and " = " in lines[error.lineno - 1], error
            lines[error.lineno - 1] = re.sub(r" = [^,)]+", "", lines[error.lineno - 1])


_NAMED_LIKE_KEYWORDS = re.compile(rf"(?<=[(, ])({'|'.join(keyword.kwlist)}):(?= \w)")


if __name__ == "__main__":
    write_stubs(sys.argv[1], Path(sys.argv[2]))

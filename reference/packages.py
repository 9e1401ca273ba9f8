"""The packages that not everybody needs: which extra installs each, and one error where it is
absent.

`pip install lumosx-rt` installs what running an engine needs, whatever the backend. Everything else
is an extra (pyproject.toml), asked for before any long work by `require`.
"""

import sys
from importlib.util import find_spec

from lumosx_rt.reference.errors import Unsupported

EXTRAS = {
    "onnxruntime": "cpu",
    "onnx": "build",
    "onnx_ir": "build",
    "onnxscript": "build",
    "modelopt": "build",
    "accelerate": "train",
    "matplotlib": "build",
    "scipy": "build",
    "triton": "cuda",
    "cuda": "cuda",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt",
}
"""Module -> the extra of this package that installs it."""
EXPORT = ("onnx", "onnx_ir", "onnxscript")
"""What writes an ONNX graph."""


def is_installed(module: str) -> bool:
    """Tell whether a module is there, without importing it."""
    return sys.modules.get(module) is not None or find_spec(module) is not None


def require(purpose: str, *modules: str) -> None:
    """Raise LumosXError if a module is not installed; it names all that are absent, and extras."""
    absent = [module for module in modules if not is_installed(module)]
    if absent:
        extras = ",".join(dict.fromkeys(EXTRAS[module] for module in absent))
        hint = " ([cuda] in place of [cpu] for a GPU)" if "cpu" in extras.split(",") else ""
        raise Unsupported(
            f"{purpose} needs {', '.join(absent)}, not installed here; pip install "
            f"'lumosx-rt[{extras}]'{hint}"
        )

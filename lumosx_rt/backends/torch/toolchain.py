"""What compiling a package needs besides torch: C++, and for a GPU CUDA's headers and driver.

All of it is asked for before a build that takes minutes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lumosx_rt.reference.errors import Unsupported

_TRIED = """\
#include <cuda.h>
#include <cuda_runtime_api.h>
extern "C" int tried() { return cuInit(0); }
"""
_MENDED = (
    "set CUDA_HOME to a CUDA toolkit (its lib64/stubs has a libcuda.so to link with), or pip "
    "install nvidia-cuda-crt nvidia-cuda-cccl and name a folder with libcuda.so in LIBRARY_PATH"
)


def cpp_compiler() -> str | None:
    """Return the C++ compiler that inductor calls, if it is there: CXX, else g++ (on a Mac
    clang++)."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX") or usual)


def check_toolchain(device: str) -> None:
    """Raise LumosXError where a package for this device ("cpu" or "cuda") cannot be compiled.

    For a GPU a small library is compiled and linked, with the very command that a package is.
    """
    if cpp_compiler() is None:
        raise Unsupported(
            "backend: 'torch' compiles C++, and there is no C++ compiler here; install one "
            "(Debian: apt install g++) or name it in CXX, or take --backend onnxruntime"
        )
    if device == "cuda":
        problem = _problem_of_cuda()
        if problem:
            raise Unsupported(
                f"device: a package for a GPU cannot be compiled here ({problem}); {_MENDED}"
            )


def _problem_of_cuda() -> str | None:
    from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "tried.cpp")
        source.write_text(_TRIED)
        try:
            options = CppTorchDeviceOptions(device_type="cuda", aot_mode=True)
        except OSError as error:  # it looks for a toolkit
            return str(error).splitlines()[0].rstrip(".")
        builder = CppBuilder("tried", str(source), options, output_dir=folder)
        command = builder.get_command_line()
        done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=folder)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).splitlines()
    telling = (line for line in lines if "error:" in line or "cannot find" in line)
    return next(telling, lines[0] if lines else f"{command.split()[0]} failed").strip()

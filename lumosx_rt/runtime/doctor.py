"""What this machine can do: versions, devices, codecs, and what is missing."""

import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.reference.version import VERSION

PACKAGES = (
    "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "diffusers",
    "transformers", "tokenizers", "safetensors", "av", "pillow", "triton", "tensorrt",
    "tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx", "nvidia-modelopt", "cuda-python",
)  # fmt: skip


def examine() -> dict[str, Any]:
    """Versions, machine, devices, and `problems`: what is missing, each with how to fix it."""
    facts: dict[str, Any] = {
        "lumosx_rt": VERSION,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": _cpus(),
        "memory_bytes": _memory_bytes(),
        "free_disk_bytes": shutil.disk_usage(".").free,
        "cache": str(cache.cache_dir()),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }
    problems: list[str] = []
    for name, check in CHECKS.items():
        try:
            facts[name] = check()
        except Exception as error:  # a doctor reports whatever breaks
            facts[name] = None
            problems.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return facts | {"problems": problems}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _torch() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}"


def _gpu() -> dict[str, Any] | str:
    from lumosx_rt.cuda.facts import gpu_facts
    from lumosx_rt.reference.errors import LumosXError

    try:
        return gpu_facts()._asdict()
    except LumosXError as error:
        return f"none; {error}"


def _providers() -> list[str]:
    from lumosx_rt.reference.packages import require

    require("the backend onnxruntime", "onnxruntime")
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _tensorrt() -> str:
    from lumosx_rt.backends.tensorrt.checks import gpu_here, import_tensorrt
    from lumosx_rt.reference.errors import LumosXError

    try:
        return f"{import_tensorrt().__version__}, for {gpu_here()['name']}"
    except LumosXError as error:
        return f"none; {error}"


def _cpp_compiler() -> str:
    from lumosx_rt.backends.torch.toolchain import cpp_compiler

    return cpp_compiler() or "none; --backend torch needs one (Debian: apt install g++)"


def _cuda_toolchain() -> str:
    import torch

    from lumosx_rt.backends.torch.toolchain import check_toolchain
    from lumosx_rt.reference.errors import LumosXError

    if not torch.cuda.is_available():
        return "not needed: no GPU"
    try:
        check_toolchain("cuda")
    except LumosXError as error:
        return f"none; {error}"
    return "headers and libcuda are there"


def _h264() -> str:
    import av

    return str(av.codec.Codec("libx264", "w").long_name)


def _text() -> str:
    from lumosx_rt.reference.scenes.words import clean_text

    return clean_text(" a&amp;amp;b  c ")


CHECKS: dict[str, Callable[[], Any]] = {
    "torch_device": _torch,
    "gpu": _gpu,
    "onnxruntime_providers": _providers,
    "tensorrt": _tensorrt,
    "cpp_compiler": _cpp_compiler,
    "cuda_toolchain": _cuda_toolchain,
    "h264_encoder": _h264,
    "text_cleaning": _text,
}

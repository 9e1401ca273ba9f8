"""Where and of what something was measured."""

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lumosx_rt.reference.version import VERSION

LIBRARIES = (
    *("torch", "triton", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy"),
    *("diffusers", "transformers", "tensorrt", "tensorrt-rtx"),
)


def machine() -> dict[str, Any]:
    """Processor, GPU and software, as far as they can be read: what decides times beside load."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "lumosx_rt": VERSION,
        **{name: found for name in LIBRARIES if (found := _version(name))},
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def load_average() -> float | None:
    """Processes that wanted to run over the last minute, this one included."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def usable_cores() -> int:
    """Count the processors of this process, where it is pinned to some."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def code_digest() -> str:
    """Hash all Python files of this package, twelve letters."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for file in sorted(
        Path(base, name)
        for base, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.endswith(".py")
    ):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

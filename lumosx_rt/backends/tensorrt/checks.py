"""What a plan of the backend tensorrt must be before TensorRT is given it, and what it needs.

As for TensorRT-RTX (`plan.py`), but the plan is for the kind of GPU that it was built on, and the
plugins it is made of are declared first.
"""

from functools import cache as once
from pathlib import Path
from typing import Any

import torch

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import PLAN, Manifest
from lumosx_rt.backends.common.devices import device_facts
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.files import sha256_of

BACKEND = "tensorrt"
_INSTEAD = "without it, take --backend torch, which is for the same GPUs, or onnxruntime"


def import_tensorrt() -> Any:
    """Return the module. Raises LumosXError where it is not installed, or its libraries do not
    load."""
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise Unsupported(
            f"backend: '{BACKEND}' needs the package tensorrt with its libraries, which cannot be "
            f"loaded here ({error}); pip install tensorrt; {_INSTEAD}"
        ) from None
    return tensorrt


def gpu_here() -> dict[str, Any]:
    """This machine's GPU. Raises LumosXError where there is none, or none that has plugins."""
    if not torch.cuda.is_available():
        raise Unsupported(
            f"backend: '{BACKEND}' builds and runs on the GPU of this machine, and torch finds "
            "none here: no NVIDIA driver, or a torch without CUDA; build on such a machine, take "
            "--backend tensorrt-rtx, which needs no GPU to build, or onnxruntime"
        )
    facts = device_facts("cuda")
    try:
        from lumosx_rt.kernels.tiles import architecture

        architecture(torch.cuda.get_device_capability())
    except (ImportError, ValueError) as error:
        raise Unsupported(
            f"backend: '{BACKEND}' is made of our kernels, which cannot be had here ({error}); "
            "take --backend onnxruntime"
        ) from None
    return facts


@once
def declare_plugins(trt: Any) -> list[str]:
    """Declare our plugins for the GPU here, once in a process; returns their names."""
    from importlib import import_module

    from lumosx_rt.kernels.plugins.tensorrt import register

    major, minor = torch.cuda.get_device_capability()
    return register(trt, import_module("tensorrt.plugin"), 10 * major + minor)


def check_plugin_plan(folder: Path, manifest: Manifest, *, trust: bool) -> None:
    """Raise LumosXError where an engine's plan must not or cannot run here.

    trust: accept a plan that was made elsewhere.
    """
    rebuild = f"build it again: lumosx-rt build CHECKPOINT -o {folder} --backend {BACKEND} --force"
    if not (folder / PLAN).is_file():
        raise Unsupported(f"{folder} has no {PLAN}; {rebuild}")
    made, here = manifest.versions.get("tensorrt", "unknown"), import_tensorrt().__version__
    if made != here:
        raise Unsupported(
            f"{folder} was built with TensorRT {made}, here is {here}; a plan loads only in the "
            f"version that made it; pip install tensorrt=={made}, or {rebuild}"
        )
    wanted, gpu = manifest.device.get("capability", "unknown"), gpu_here()
    if wanted != gpu["capability"]:
        raise Unsupported(
            f"{folder} was built on {manifest.device.get('name')} (compute capability {wanted}), "
            f"here is {gpu['name']} ({gpu['capability']}); {rebuild}"
        )
    if not trust and not cache.compiled_here(sha256_of(folder / PLAN)):
        raise Unsupported(
            f"{folder}: {PLAN} holds compiled code that was made elsewhere, and loading it would "
            f"run it with your rights; {rebuild}; or, if you know where it comes from, load it "
            "with --trust (rt.load(..., trust=True))"
        )

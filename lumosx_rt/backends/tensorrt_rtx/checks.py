"""What a plan must be before TensorRT-RTX is given it: compiled code for a GPU, and loading it runs
what it says.

Made on this machine or trusted by name, by this very version of TensorRT-RTX, for the GPU here.
"""

from pathlib import Path
from typing import Any

import torch

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import PLAN, Manifest, buckets_of, plan_of
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.files import sha256_of

BACKEND = "tensorrt-rtx"


def import_tensorrt_rtx() -> Any:
    """Return the module. Raises LumosXError where it is not installed, or does not load."""
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise Unsupported(
            f"backend: '{BACKEND}' needs the package tensorrt-rtx, which cannot be loaded here "
            f"({error}); install it: pip install lumosx-rt[tensorrt]"
        ) from None
    return tensorrt_rtx


def plans_of(manifest: Manifest) -> list[str]:
    """An engine's plans, for the fewest references first."""
    return [plan_of(most) for most in buckets_of(manifest.files)] or [PLAN]


def check_plan(folder: Path, manifest: Manifest, *, trust: bool) -> None:
    """Raise LumosXError where an engine's plan must not or cannot run here.

    trust: accept a plan that was made elsewhere.
    """
    targets = str(manifest.device.get("targets", ""))
    rebuild = (
        f"build it again: lumosx-rt build CHECKPOINT -o {folder} --backend {BACKEND} "
        f"--targets {targets} --force"
    )
    plans = plans_of(manifest)
    for name in plans:
        if not (folder / name).is_file():
            raise Unsupported(f"{folder} has no {name}; {rebuild}")
    made = manifest.versions.get("tensorrt_rtx", "unknown")
    here = import_tensorrt_rtx().__version__
    if made != here:
        raise Unsupported(
            f"{folder} was built with TensorRT-RTX {made}, here is {here}; a plan loads only in "
            f"the version that made it; pip install tensorrt-rtx=={made}, or {rebuild}"
        )
    if not torch.cuda.is_available():
        raise Unsupported(
            f"{folder} runs on a GPU ({targets}), and torch finds none here: no NVIDIA driver, or "
            "a torch without CUDA; load it on such a machine, or build for this one with --backend "
            "onnxruntime"
        )
    capability = "sm_" + "".join(map(str, torch.cuda.get_device_capability()))
    if capability not in targets.split(","):
        raise Unsupported(
            f"{folder} was built for {targets}, the GPU here is {capability}; build it again with "
            f"--targets {capability}, or with --backend torch"
        )
    strange = [name for name in plans if not cache.compiled_here(sha256_of(folder / name))]
    if not trust and strange:
        raise Unsupported(
            f"{folder}: {strange[0]} holds compiled code that was made elsewhere, loading it "
            f"would run it with your rights; {rebuild}; or, if you know where it comes from, load "
            "it with --trust (rt.load(..., trust=True))"
        )

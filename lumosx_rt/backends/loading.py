"""The backend that an engine's manifest names, loaded: the one place that tells them apart."""

from pathlib import Path

from lumosx_rt import cache
from lumosx_rt.backends import Backend
from lumosx_rt.backends.aoti import TorchBackend
from lumosx_rt.backends.onnxruntime import OnnxRuntimeBackend, Provider
from lumosx_rt.backends.package import check_package
from lumosx_rt.backends.plan import check_plan, import_tensorrt_rtx
from lumosx_rt.backends.tensorrt_rtx import TensorRtRtxBackend
from lumosx_rt.manifest import GRAPH, PACKAGE, PLAN, Manifest
from lumosx_rt.reference.errors import LumosXError


def load_backend(
    folder: Path, manifest: Manifest, provider: Provider = "auto", *, trust: bool = False
) -> Backend:
    """What runs the engine in `folder`.

    provider: where onnxruntime runs; the others run where they were compiled for, and only that
    may be asked of them. trust: run compiled code that was not made on this machine.
    Raises LumosXError for whatever does not fit.
    """
    if manifest.backend == "onnxruntime":
        return OnnxRuntimeBackend(folder / GRAPH, provider)
    if manifest.backend == "tensorrt-rtx":
        if provider == "cpu":
            raise LumosXError(
                f"provider: got 'cpu', {folder} is a plan for GPUs; build with --backend "
                "onnxruntime or torch, or leave --provider away"
            )
        check_plan(folder, manifest, trust=trust)
        kernels = cache.kernels_of(manifest.files[PLAN].sha256)
        return TensorRtRtxBackend(import_tensorrt_rtx(), folder / PLAN, manifest.layouts, kernels)
    if manifest.backend != "torch":
        raise LumosXError(
            f"{folder} was built for the backend '{manifest.backend}', this version runs "
            "onnxruntime, torch and tensorrt-rtx; build it again with --backend onnxruntime"
        )
    device = "cuda" if "capability" in manifest.device else "cpu"
    if provider not in ("auto", device):
        raise LumosXError(
            f"provider: got '{provider}', {folder} was compiled for {device}; build it again with "
            f"--backend torch --device {provider}, or leave --provider away"
        )
    check_package(folder, manifest, trust=trust)
    return TorchBackend(folder / PACKAGE, device)

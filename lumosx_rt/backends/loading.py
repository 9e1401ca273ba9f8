"""The backend that an engine's manifest names, loaded: the one place that tells them apart."""

from functools import partial
from pathlib import Path

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import GRAPH, PACKAGE, PLAN, Manifest, buckets_of, plan_of
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.backends.onnxruntime.providers import COMPILING, serving_of
from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend
from lumosx_rt.backends.onnxruntime.step_cache import CachingBackend
from lumosx_rt.backends.tensorrt.checks import (
    check_plugin_plan,
    declare_plugins,
    import_tensorrt,
)
from lumosx_rt.backends.tensorrt.run import TensorRtBackend
from lumosx_rt.backends.tensorrt_rtx.buckets import BucketedBackend
from lumosx_rt.backends.tensorrt_rtx.checks import check_plan, import_tensorrt_rtx
from lumosx_rt.backends.tensorrt_rtx.run import TensorRtRtxBackend
from lumosx_rt.backends.torch.checks import check_package
from lumosx_rt.backends.torch.run import TorchBackend
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.sampling.inputs import Backend
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy


def load_backend(
    folder: Path,
    manifest: Manifest,
    provider: Provider = "auto",
    *,
    trust: bool = False,
    lossy: Lossy = EXACT,
) -> Backend:
    """What runs the engine in `folder`.

    provider: where onnxruntime runs; the others run where they were compiled for, and only that
    may be asked of them. trust: run compiled code that was not made on this machine. lossy: only
    graphs can leave parts of themselves out.
    Raises LumosXError for whatever does not fit.
    """
    if lossy and manifest.backend != "onnxruntime":
        raise LumosXError(
            f"lossy: {folder} is compiled as a whole ({manifest.backend}), and shortcuts leave "
            "parts out; build with --backend onnxruntime, or take none"
        )
    if manifest.backend == "onnxruntime":
        if lossy:
            config = LumosXConfig.from_dict(manifest.model)
            return CachingBackend(folder / GRAPH, config, lossy, provider)
        serving = serving_of(manifest) if provider in COMPILING else None
        return OnnxRuntimeBackend(folder / GRAPH, provider, serving=serving)
    if manifest.backend in ("tensorrt-rtx", "tensorrt") and provider not in ("auto", "cuda"):
        raise LumosXError(
            f"provider: got '{provider}', {folder} is a plan for GPUs; build with --backend "
            "onnxruntime or torch, or leave --provider away"
        )
    if manifest.backend == "tensorrt":
        check_plugin_plan(folder, manifest, trust=trust)
        trt = import_tensorrt()
        declare_plugins(trt)
        return TensorRtBackend(trt, folder / PLAN, manifest.layouts)
    if manifest.backend == "tensorrt-rtx":
        check_plan(folder, manifest, trust=trust)

        def loaded(plan: str, most: int) -> Backend:
            limits = manifest.layouts | {"references": [0, most]}
            kernels = cache.kernels_of(manifest.files[plan].sha256)
            return TensorRtRtxBackend(import_tensorrt_rtx(), folder / plan, limits, kernels)

        buckets = buckets_of(manifest.files)
        if not buckets:
            return loaded(PLAN, manifest.layouts["references"][1])
        return BucketedBackend({most: partial(loaded, plan_of(most), most) for most in buckets})
    if manifest.backend != "torch":
        raise LumosXError(
            f"{folder} was built for the backend '{manifest.backend}', this version runs "
            "onnxruntime, torch, tensorrt-rtx and tensorrt; build it again with --backend "
            "onnxruntime"
        )
    device = "cuda" if "capability" in manifest.device else "cpu"
    if provider not in ("auto", device):
        other = f"torch --device {provider}" if provider in ("cpu", "cuda") else "onnxruntime"
        raise LumosXError(
            f"provider: got '{provider}', {folder} was compiled for {device}; build it again with "
            f"--backend {other}, or leave --provider away"
        )
    check_package(folder, manifest, trust=trust)
    return TorchBackend(folder / PACKAGE, device)

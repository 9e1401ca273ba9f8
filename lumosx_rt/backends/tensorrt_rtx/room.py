"""The backend tensorrt-rtx: plans for named GPUs, built without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lumosx_rt.artifact import user_cache
from lumosx_rt.artifact.manifest import PLAN, buckets_of, plan_of
from lumosx_rt.backends.common.compiler import check_plan_provider, check_whole
from lumosx_rt.backends.common.room import BackendRoom, LoadRequest
from lumosx_rt.backends.tensorrt_rtx.buckets import BucketedBackend
from lumosx_rt.backends.tensorrt_rtx.checks import BACKEND, check_plan, import_tensorrt_rtx
from lumosx_rt.backends.tensorrt_rtx.compile import plan_compiler
from lumosx_rt.backends.tensorrt_rtx.run import TensorRtRtxBackend
from lumosx_rt.reference.sampling.inputs import Backend
from lumosx_rt.reference.scenes.video_size import VideoSize


@dataclass(frozen=True, kw_only=True)
class TensorRtRtxOptions:
    """What can be asked of plans for GPUs that need not be here."""

    precision: str = "bf16"
    targets: str | Sequence[str] | None = None
    """Kinds of GPU, like "sm_89,sm_120"."""
    max_seeds: int | None = None
    """Most videos of a scene at once."""
    max_size: VideoSize | None = None
    """The largest video, by default the checkpoint's own."""
    buckets: str | Sequence[int] | None = None
    """In fp8: the references that each of several plans serves, like "4,16"."""
    weight_streaming: bool = False
    """Weights stay on the host where the GPU is small."""
    calibration: Path | None = None
    """The scales of fp8."""


def load(request: LoadRequest) -> Backend:
    """Check the plan, or the plans of its buckets, and load what is needed first."""
    folder, manifest = request.folder, request.manifest
    check_whole(folder, manifest, request.lossy)
    check_plan_provider(folder, request.provider)
    check_plan(folder, manifest, trust=request.trust)

    def loaded(plan: str, most: int) -> Backend:
        limits = manifest.layouts | {"references": [0, most]}
        kernels = user_cache.kernels_of(manifest.files[plan].sha256)
        return TensorRtRtxBackend(import_tensorrt_rtx(), folder / plan, limits, kernels)

    buckets = buckets_of(manifest.files)
    if not buckets:
        return loaded(PLAN, manifest.layouts["references"][1])
    return BucketedBackend({most: partial(loaded, plan_of(most), most) for most in buckets})


_TARGETS = "a plan has none, so say with --targets which GPUs it is for"
TENSORRT_RTX = BackendRoom(
    name=BACKEND,
    options=TensorRtRtxOptions,
    compiler=plan_compiler,
    load=load,
    advice={"opset": _TARGETS, "device": _TARGETS},
)

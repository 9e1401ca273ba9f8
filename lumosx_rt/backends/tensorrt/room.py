"""The backend tensorrt: one plan with our kernels as plugins, for the GPU of this machine."""

from dataclasses import dataclass

from lumosx_rt.artifact.manifest import PLAN
from lumosx_rt.backends.common.compiler import check_plan_provider, check_whole
from lumosx_rt.backends.common.room import BackendRoom, LoadRequest
from lumosx_rt.backends.tensorrt.checks import (
    BACKEND,
    check_plugin_plan,
    declare_plugins,
    import_tensorrt,
)
from lumosx_rt.backends.tensorrt.compile import plugin_plan_compiler
from lumosx_rt.backends.tensorrt.run import TensorRtBackend
from lumosx_rt.reference.sampling.inputs import Backend
from lumosx_rt.reference.scenes.video_size import VideoSize


@dataclass(frozen=True, kw_only=True)
class TensorRtOptions:
    """What can be asked of a plan for the GPU of this machine."""

    precision: str = "bf16"
    max_seeds: int | None = None
    """Most videos of a scene at once."""
    max_size: VideoSize | None = None
    """The largest video, by default the checkpoint's own."""
    weight_streaming: bool = False
    """Weights stay on the host where the GPU is small."""


def load(request: LoadRequest) -> Backend:
    """Declare the plugins, check the plan and load it."""
    check_whole(request.folder, request.manifest, request.lossy)
    check_plan_provider(request.folder, request.provider)
    check_plugin_plan(request.folder, request.manifest, trust=request.trust)
    trt = import_tensorrt()
    declare_plugins(trt)
    return TensorRtBackend(trt, request.folder / PLAN, request.manifest.layouts)


_ALONE = "tensorrt builds one plan in bf16 or fp16 for the GPU of this machine, so leave it away"
TENSORRT = BackendRoom(
    name=BACKEND,
    options=TensorRtOptions,
    compiler=lambda options, random: plugin_plan_compiler(options),
    load=load,
    advice=dict.fromkeys(("opset", "device", "targets", "buckets", "calibration"), _ALONE),
)

"""What turns a transformer into an engine's graph or package: one compiler for each backend.

A request for one is checked before any heavy work; what it makes is loaded by `load_backend`.
"""

from collections.abc import Sequence
from pathlib import Path

from lumosx_rt.backends.common.compiler import Compiler, calibration_for
from lumosx_rt.backends.onnxruntime.compile import OnnxCompiler
from lumosx_rt.backends.tensorrt.checks import BACKEND as TENSORRT
from lumosx_rt.backends.tensorrt.compile import plugin_plan_compiler
from lumosx_rt.backends.tensorrt_rtx.checks import BACKEND as TENSORRT_RTX
from lumosx_rt.backends.tensorrt_rtx.compile import check_plan_request, plan_compiler
from lumosx_rt.backends.torch.compile import _torch_compiler
from lumosx_rt.calibration.apply.graph import check_carriable
from lumosx_rt.calibration.formats import FORMATS
from lumosx_rt.export.onnx.graph import OPSETS
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.packages import EXPORT, require
from lumosx_rt.reference.scenes.video_size import VideoSize

BACKENDS = ("auto", "onnxruntime", "torch", TENSORRT_RTX, TENSORRT)
DEVICES = ("auto", "cpu", "cuda")


def compiler_of(
    backend: str = "auto",
    precision: str | None = None,
    opset: int | None = None,
    device: str = "auto",
    *,
    calibration: Path | None = None,
    random: bool = False,
    targets: str | Sequence[str] | None = None,
    max_seeds: int | None = None,
    max_size: VideoSize | None = None,
    buckets: str | Sequence[int] | None = None,
    weight_streaming: bool = False,
) -> Compiler:
    """The compiler for a request. `auto` is onnxruntime, whose graph runs on every machine.

    precision: by default fp32, for a GPU bf16. calibration: of "fp8", a file; where weights are
    `random` there need be none, and `document` is to be filled in. opset is onnxruntime's alone,
    device torch's, and what follows tensorrt-rtx's (`plan_compiler`).
    Raises LumosXError for what does not exist or does not go together, and without a C++ compiler.
    """
    if backend not in BACKENDS:
        raise LumosXError(f"backend: got '{backend}', accepted are {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise LumosXError(f"device: got '{device}', accepted are {', '.join(DEVICES)}")
    if opset not in (None, *OPSETS):
        raise LumosXError(f"opset: got {opset}, accepted are {', '.join(map(str, OPSETS))}")
    if backend == TENSORRT_RTX:
        if opset is not None or device != "auto":
            raise LumosXError(
                f"opset and device: got {opset} and '{device}', a plan has neither; leave them "
                "away, and say with --targets which GPUs it is for"
            )
        check_plan_request(precision, targets, max_seeds, buckets)
        document = calibration_for(precision, calibration, random)
        require(f"--backend {TENSORRT_RTX}", *EXPORT, "onnxruntime")
        return plan_compiler(
            precision, targets, max_seeds, max_size, buckets, weight_streaming, document
        )
    if backend == TENSORRT:
        if opset is not None or device != "auto" or targets or buckets or calibration:
            raise LumosXError(
                "opset, device, targets, buckets, calibration: tensorrt builds one plan in bf16 or "
                "fp16 for the GPU of this machine; leave them away, or take --backend "
                f"{TENSORRT_RTX}"
            )
        require(f"--backend {TENSORRT}", *EXPORT)
        return plugin_plan_compiler(precision, max_seeds, max_size, weight_streaming)
    if targets or max_seeds or max_size or buckets or weight_streaming:
        raise LumosXError(
            "targets, max_seeds, max_size, buckets, weight_streaming: only plans have them; leave "
            f"them away, or take --backend {TENSORRT_RTX}"
        )
    if precision not in (None, *FORMATS):
        raise LumosXError(f"precision: got '{precision}', accepted are {', '.join(FORMATS)}")
    if backend == "torch":
        return _torch_compiler(precision, opset, device, calibration, random)
    if precision == "bf16":
        raise LumosXError(
            "precision: got 'bf16', onnxruntime takes fp32, fp16 or fp8; bf16 is --backend torch"
        )
    if device != "auto":
        raise LumosXError(
            f"device: got '{device}', an onnxruntime engine is built for all of them; say where it "
            "runs with --provider when it is loaded, or build with --backend torch"
        )
    document = calibration_for(precision, calibration, random)
    if document is not None:
        check_carriable(document)
    if precision == "fp8" and opset not in (None, OPSETS[0]):
        raise LumosXError(f"opset: got {opset}, fp8 is opset {OPSETS[0]}; leave it away")
    require("building an engine", *EXPORT, "onnxruntime")
    return OnnxCompiler(precision or "fp32", opset or OPSETS[0], document)

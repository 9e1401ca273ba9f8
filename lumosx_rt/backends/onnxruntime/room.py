"""The backend onnxruntime: one ONNX graph for every scene and every machine."""

from dataclasses import dataclass
from pathlib import Path

from lumosx_rt.artifact.manifest import GRAPH
from lumosx_rt.backends.common.compiler import calibration_for
from lumosx_rt.backends.common.room import BackendRoom, LoadRequest
from lumosx_rt.backends.onnxruntime.compile import OnnxCompiler
from lumosx_rt.backends.onnxruntime.providers import COMPILING, serving_of
from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend
from lumosx_rt.backends.onnxruntime.step_cache import CachingBackend
from lumosx_rt.calibration.apply.graph import check_carriable
from lumosx_rt.calibration.formats import format_of
from lumosx_rt.export.onnx.graph import OPSETS
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.packages import EXPORT, require
from lumosx_rt.reference.sampling.inputs import Backend

PRECISIONS = ("fp32", "fp16", "fp8")


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeOptions:
    """What can be asked of an onnxruntime engine."""

    precision: str = "fp32"
    """fp16 stores matrices in half precision; arithmetic is float32."""
    opset: int | None = None
    """The operator set, by default the newest that onnxruntime is tested with."""
    calibration: Path | None = None
    """The scales of fp8."""


def compiler(options: OnnxRuntimeOptions, random: bool) -> OnnxCompiler:
    """Check a request. Raises LumosXError for what does not go together."""
    precision, opset = options.precision, options.opset
    numbers = format_of(precision)
    if precision not in PRECISIONS:
        raise Unsupported(
            f"precision: got '{precision}', onnxruntime takes fp32, fp16 or fp8; {precision} is "
            "--backend torch"
        )
    if opset not in (None, *OPSETS):
        raise Unsupported(f"opset: got {opset}, accepted are {', '.join(map(str, OPSETS))}")
    document = calibration_for(numbers, options.calibration, random)
    if document is not None:
        check_carriable(document)
    if numbers.quantized and opset not in (None, OPSETS[0]):
        raise Unsupported(f"opset: got {opset}, {precision} is opset {OPSETS[0]}; leave it away")
    require("building an engine", *EXPORT, "onnxruntime")
    return OnnxCompiler(precision, opset or OPSETS[0], document)


def load(request: LoadRequest) -> Backend:
    """Load the graph, whole or cut for lossy shortcuts."""
    graph, provider = request.folder / GRAPH, request.provider
    if request.lossy:
        config = LumosXConfig.from_dict(request.manifest.model)
        return CachingBackend(graph, config, request.lossy, provider)
    serving = serving_of(request.manifest) if provider in COMPILING else None
    return OnnxRuntimeBackend(graph, provider, serving=serving)


ONNXRUNTIME = BackendRoom(
    name="onnxruntime",
    options=OnnxRuntimeOptions,
    compiler=compiler,
    load=load,
    advice={
        "device": "a graph is built for all of them, so say where it runs with --provider when it "
        "is loaded"
    },
)

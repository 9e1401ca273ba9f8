"""One ONNX graph for every machine that onnxruntime runs on."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lumosx_rt.artifact.manifest import GRAPH
from lumosx_rt.artifact.versions import versions
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.backends.common.fp8_layers import layer_parity
from lumosx_rt.calibration.apply.graph import carried
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.formats import format_of
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.onnx.graph import OPSETS
from lumosx_rt.export.onnx.named_values import marked, name_marked
from lumosx_rt.export.onnx.ops import QDQ_NODES, export_ops
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.progress import Report


@dataclass(frozen=True)
class OnnxCompiler:
    """One ONNX graph for every machine that onnxruntime runs on."""

    precision: str
    opset: int
    document: Calibration | None = None
    backend = "onnxruntime"
    files = (GRAPH,)
    provider: ClassVar[Provider] = "cpu"  # exact: on a GPU matrices are rounded

    @property
    def device(self) -> dict[str, Any]:
        return {"name": "any that onnxruntime runs on"}

    @property
    def options(self) -> dict[str, Any]:
        return {"opset": self.opset}

    @property
    def versions(self) -> dict[str, str]:
        import onnx
        import onnxruntime

        return versions(onnx=onnx.__version__, onnxruntime=onnxruntime.__version__)

    @property
    def bytes_per_parameter(self) -> int:
        return format_of(self.precision).weight_bytes

    @property
    def remedy(self) -> str:
        return f"Try --opset {OPSETS[-1]}, or fp32"

    def limits(self, defaults: dict[str, Any], max_references: int) -> Limits:
        return Limits.any_size(max_references)

    def compile(
        self, model: LumosX, engine: Path, limits: Limits, report: Report
    ) -> dict[str, Any]:
        from lumosx_rt.export.onnx.graph import export_onnx

        path, ops, precision = engine / GRAPH, export_ops(self.opset), self.precision
        with ExitStack() as stack:
            if self.document is not None:
                precision = "fp32"  # of what stays
                ops = stack.enter_context(carried(model, self.document, QDQ_NODES, ops))
            facts = export_onnx(
                model,
                path,
                opset=self.opset,
                precision=precision,
                ops=stack.enter_context(marked(model, ops)),
                finish=name_marked,
                report=report,
            )
        if self.document is None:
            return facts
        report("checking every 8-bit product")
        return facts | {"fp8": layer_parity(path, model, self.document, self.document.quantized)}

    def vouches_for(self, engine: Path) -> bool:
        return True  # a graph is data

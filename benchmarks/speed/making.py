"""Graphs and packages of a model: what is made once and then is in the cache."""

from pathlib import Path

import torch

from lumosx_rt.artifact.source import weights_digest
from lumosx_rt.calibration.apply.graph import carried
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.noise import noise_calibration
from lumosx_rt.export.aoti import compile_package
from lumosx_rt.export.onnx.graph import OPSETS, export_onnx
from lumosx_rt.export.onnx.ops import PACKAGE_OPS, QDQ_NODES, export_ops
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX

EXPORT = ("export/onnx/ops.py", "export/program.py")
PACKAGE_SOURCES = (*EXPORT, "export/aoti.py", "benchmarks/speed/making.py")
GRAPH_SOURCES = (*EXPORT, "export/onnx/graph.py", "benchmarks/speed/making.py")
FP8_SOURCES = (
    *GRAPH_SOURCES,
    "calibration/apply/graph.py",
    "calibration/noise.py",
    "kernels/qdq.py",
)


def make_package(model: LumosX, path: Path, dtype: torch.dtype) -> object:
    return compile_package(recast(model, dtype), path, ops=PACKAGE_OPS)


def make_graph(model: LumosX, path: Path, precision: str) -> object:
    if precision != "fp8":
        return export_onnx(model, path, precision=precision)
    with carried(model, scales(model), QDQ_NODES, export_ops(OPSETS[0])) as ops:
        return export_onnx(model, path, ops=ops)


def scales(model: LumosX) -> Calibration:
    """Observed on noise, as for random weights in `build`."""
    return noise_calibration(model, weights_digest(model))

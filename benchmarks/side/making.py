"""Graphs and packages of a model: what is made once and then lies in the cache."""

from pathlib import Path

import torch

from lumosx_rt.backends.eager import recast
from lumosx_rt.calibration.carry import carried
from lumosx_rt.calibration.document import Calibration
from lumosx_rt.calibration.noise import noise_calibration
from lumosx_rt.export.graph import OPSETS, export_onnx
from lumosx_rt.export.ops import PACKAGE_OPS, QDQ_NODES, export_ops
from lumosx_rt.export.package import compile_package
from lumosx_rt.reference.model import LumosX
from lumosx_rt.source import weights_digest

EXPORT = ("export/ops.py", "export/program.py")
PACKAGE_SOURCES = (*EXPORT, "export/package.py", "benchmarks/side/making.py")
GRAPH_SOURCES = (*EXPORT, "export/graph.py", "benchmarks/side/making.py")
FP8_SOURCES = (*GRAPH_SOURCES, "calibration/carry.py", "calibration/noise.py", "kernels/qdq.py")


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

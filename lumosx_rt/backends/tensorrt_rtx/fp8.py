"""An FP8 plan's graphs: one for each bucket of references, looked into before TensorRT is.

Linears are in e4m3 throughout; of attention the video's rectangle alone, whose keys are padded to
the bucket's number. Groups and the text stay in half precision and as long as they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lumosx_rt.artifact.manifest import plan_of
from lumosx_rt.backends.common.forward_parity import FORWARD_CASES, forward_parity
from lumosx_rt.backends.common.fp8_layers import layer_parity, products_of
from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend
from lumosx_rt.calibration.apply.graph import carried
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.sites import is_attention, part_of
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.onnx.float32_copy import widen
from lumosx_rt.export.onnx.graph import OPSETS, export_onnx
from lumosx_rt.export.onnx.ops import PLAN_OPS, QDQ_NODES
from lumosx_rt.export.tensorrt.padded_keys import SLOTS, padded_rectangle, slots_of, with_slots
from lumosx_rt.export.tensorrt.plan import Fp8
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.progress import Report

COMPARED_KEYS = 1 + max(
    SceneLayout.from_key(key).tokens for keys, _ in FORWARD_CASES for key in keys
)


class Job(NamedTuple):
    """One plan to be built."""

    file: str
    """Inside the engine."""
    graph: Path
    limits: Limits
    fp8: Fp8 = Fp8()


def widened(graph: Path) -> OnnxRuntimeBackend:
    """Return the graph that TensorRT is given, in float32, as onnxruntime runs it here."""
    path = graph.with_name("widened.onnx")
    widen(graph, path)
    return OnnxRuntimeBackend(path, "cpu")


def fp8_jobs(
    model: LumosX,
    document: Calibration,
    graph: Path,
    limits: Limits,
    buckets: Sequence[int],
    report: Report,
) -> tuple[dict[str, Any], list[Job]]:
    """Facts for the report, and the plans to build; model: in bf16, used up.

    What is compared with the reference is the same graph with slots for the layouts of
    `forward_parity`, in float32, and without the rounding of probabilities, which TensorRT adds.
    """
    size = (limits.frames.usual, limits.height.usual, limits.width.usual)
    most = buckets[-1]
    model.register_buffer(SLOTS, slots_of(size, most))
    try:
        with carried(model, document, QDQ_NODES, PLAN_OPS, padded_rectangle(model)) as ops:
            facts = export_onnx(model, graph, opset=OPSETS[0], ops=ops, report=report)
    finally:
        delattr(model, SLOTS)
    graphs = {most: graph}
    for fewer in buckets[:-1]:
        graphs[fewer] = graph.with_name(f"model-{fewer}.onnx")
        with_slots(graph, graphs[fewer], slots_of(size, fewer))

    report("checking the graph against the reference")
    wide, sites = recast(model, torch.float32), carried_sites(document)
    model.to("meta")  # memory that is needed now
    compared = graph.with_name("compared.onnx")
    with_slots(graph, compared, torch.arange(COMPARED_KEYS))
    facts["parity"] = forward_parity(wide, lambda: widened(compared), "fp8", document)
    report("checking every 8-bit product")
    facts["fp8"] = layer_parity(graph.with_name("widened.onnx"), wide, document, sites)
    attention = [f"{site}.video" for site in sites if is_attention(site)]
    fp8 = Fp8(attention, products_of(graph))
    jobs = [Job(plan_of(n), graphs[n], limits.up_to(n), fp8) for n in buckets]
    return facts, jobs


def carried_sites(document: Calibration) -> list[str]:
    """Return the document's sites that a plan has in e4m3."""
    return [s for s in document.quantized if not is_attention(s) or part_of(s) == "self"]

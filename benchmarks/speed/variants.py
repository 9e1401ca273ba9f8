"""The formulations and engines that are compared, each as a function of one size.

A gate is the largest relative error (2-norm) against the reference in float32. bf16 and e4m3 may
err twice as much as the reference does with the same roundings, as engines may in `verify`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.as_released import AsReleased
from benchmarks.sources import MODEL
from benchmarks.speed.making import (
    FP8_SOURCES,
    GRAPH_SOURCES,
    PACKAGE_SOURCES,
    make_graph,
    make_package,
    scales,
)
from benchmarks.speed.sizes import TIME, Size, loud_model
from benchmarks.speed.wan import velocity, wan_of
from lumosx_rt.backends.common.simulated import SimulatedBackend
from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend
from lumosx_rt.backends.torch.run import TorchBackend
from lumosx_rt.calibration.formats import ROUNDED_GATE, format_of
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import Block, LumosX
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import Backend

Run = Callable[[], Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = ("benchmarks/speed/sizes.py",)
BACKENDS = "lumosx_rt/backends"


@dataclass(frozen=True)
class Variant:
    """One way to compute the velocity."""

    name: str
    precision: str
    run: Callable[[Size, LumosX, Path], Run]
    """Of a size, its model, and what `make` wrote. What it returns is timed."""
    sources: tuple[str, ...]
    """The files that its run depends on, beside the model's and those of what is made."""
    make: Callable[[LumosX, Path], object] | None = None
    """Writes a graph or a package, once."""
    made_of: tuple[str, ...] = ()
    """The files that what `make` writes depends on, beside the model's."""
    suffix: str = ".onnx"
    references: bool = True
    """False: the same video without references; its latents are the same."""
    versions: tuple[str, ...] = field(default=("torch",))

    @property
    def all_sources(self) -> tuple[str, ...]:
        return (*self.making_sources, *self.sources, "benchmarks/speed/variants.py")

    @property
    def making_sources(self) -> tuple[str, ...]:
        return (*MODEL, *SIZES, *self.made_of)

    def of(self, size: Size) -> Size:
        return size if self.references else size.without_references


# -- how each is run ----------------------------------------------------------------------------


def as_released(size: Size, model: LumosX, made: Path, dtype: torch.dtype) -> Run:
    """Seed after seed, because the release takes one at a time; references to the very end."""
    model = recast(model, dtype)
    model.ops = AsReleased(size.layout, size.config.head_dim, torch.device("cpu")).ops()
    latents, inputs = size.given
    rest = inputs.arguments()
    frames = size.layout.video_frames

    @torch.inference_mode()
    def run() -> Tensor:
        time = torch.full((1,), TIME)
        clips = [model(clip, time, *rest, keep_references=True) for clip in latents.split(1, 1)]
        return torch.cat([clip[:, :, :, :frames] for clip in clips], 1)

    return run


def bound(backend: Backend, size: Size) -> Run:
    latents, inputs = size.given
    return partial(backend.bind(inputs), latents, TIME)


def eager(size: Size, model: LumosX, made: Path, dtype: torch.dtype) -> Run:
    return bound(EagerBackend(recast(model, dtype)), size)


def compiled(size: Size, model: LumosX, made: Path) -> Run:
    """Block by block: three variants are compiled (first, middle, last), not all blocks."""
    model = recast(model, torch.float32)
    torch._dynamo.reset()  # other sizes' variants would count towards its limit
    for block in model.blocks:
        assert isinstance(block, Block)
        block.site = "blocks"  # a name of its own would be compiled for each
        setattr(block, "forward", torch.compile(block.forward, dynamic=False))  # noqa: B010
    return bound(EagerBackend(model), size)


def packaged(size: Size, model: LumosX, made: Path) -> Run:
    return bound(TorchBackend(made, "cpu"), size)


def onnx(size: Size, model: LumosX, made: Path) -> Run:
    return bound(OnnxRuntimeBackend(made, "cpu", threads=torch.get_num_threads()), size)


def wan(size: Size, model: LumosX, made: Path) -> Run:
    latents, inputs = size.given
    call = partial(velocity, wan_of(model), latents, TIME, inputs.tensors["text"])
    return torch.inference_mode()(call)


# -- what there is ------------------------------------------------------------------------------

_RELEASED = ("benchmarks/gpu/as_released.py", f"{BACKENDS}/eager/run.py")
_EAGER = (f"{BACKENDS}/eager/run.py",)
_PACKAGE = (f"{BACKENDS}/torch/run.py",)
_GRAPH = (f"{BACKENDS}/onnxruntime/run.py",)
_ORT = ("torch", "onnx", "onnxscript", "onnxruntime")

BASELINE = "as released, eager"
REFERENCE = "reference, eager"
WAN = "Wan2.1 in diffusers, no references"


def _in(precision: str) -> str:
    return f", {precision}" if precision != "fp32" else ""


def _in_torch(precision: str) -> tuple[Variant, ...]:
    dtype, tail = DTYPES[precision], _in(precision)
    return (
        Variant(BASELINE + tail, precision, partial(as_released, dtype=dtype), _RELEASED),
        Variant(REFERENCE + tail, precision, partial(eager, dtype=dtype), _EAGER),
        Variant(
            "torch package" + tail,
            precision,
            packaged,
            _PACKAGE,
            partial(make_package, dtype=dtype),
            PACKAGE_SOURCES,
            ".pt2",
        ),
    )


def _in_onnx(precision: str, name: str, made_of: tuple[str, ...] = GRAPH_SOURCES) -> Variant:
    make = partial(make_graph, precision=precision)
    return Variant(name, precision, onnx, _GRAPH, make, made_of, versions=_ORT)


_WAN_SOURCES = ("benchmarks/speed/wan.py", "reference/checkpoints/key_names.py")
VARIANTS = {
    variant.name: variant
    for variant in (
        *_in_torch("fp32"),
        Variant("reference, torch.compile", "fp32", compiled, _EAGER),
        _in_onnx("fp32", "onnxruntime"),
        _in_onnx("fp16", "onnxruntime, fp16 weights"),
        _in_onnx("fp8", "onnxruntime, fp8", FP8_SOURCES),
        *_in_torch("bf16"),
        Variant(
            WAN,
            "fp32",
            wan,
            _WAN_SOURCES,
            references=False,
            versions=("torch", "diffusers"),
        ),
        Variant(
            "reference, eager, no references",
            "fp32",
            partial(eager, dtype=torch.float32),
            _EAGER,
            references=False,
        ),
    )
}


class Judge:
    """Says how far a variant is from the reference, and how far it may be."""

    def __init__(self, size: Size, model: LumosX) -> None:
        self.size, self.model = size, model
        self._expected: dict[bool, Tensor] = {}
        self._gates: dict[tuple[str, bool], float] = {}

    def error(self, variant: Variant, output: Tensor) -> float:
        if not torch.isfinite(output).all():
            return float("inf")
        return relative_error(output, self.expected(variant))

    def gate(self, variant: Variant) -> float:
        if (gate := format_of(variant.precision).forward_gate) is not None:
            return gate
        key = variant.precision, variant.references
        if key not in self._gates:
            yardstick = bound(self._rounded(variant.precision), variant.of(self.size))()
            self._gates[key] = ROUNDED_GATE * relative_error(yardstick, self.expected(variant))
        return self._gates[key]

    def expected(self, variant: Variant) -> Tensor:
        with_references = variant.references
        if with_references not in self._expected:
            output = bound(EagerBackend(self.model), variant.of(self.size))()
            self._expected[with_references] = output.clone()
        return self._expected[with_references]

    def _rounded(self, precision: str) -> Backend:
        if precision == "fp8":
            return SimulatedBackend(self.model, scales(self.model))
        return EagerBackend(recast(self.model, DTYPES[precision]))


def model_of(size: Size) -> LumosX:
    return loud_model(size.config)

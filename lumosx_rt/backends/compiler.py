"""What turns a transformer into an engine's graph or package: one compiler for each backend.

A request for one is checked before any heavy work; what it makes is loaded by `load_backend`.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import GRAPH, PACKAGE, PRECISIONS
from lumosx_rt.artifact.versions import versions
from lumosx_rt.backends.fp8_layers import layer_parity
from lumosx_rt.backends.onnxruntime.providers import Provider
from lumosx_rt.backends.tensorrt.checks import BACKEND as TENSORRT
from lumosx_rt.backends.tensorrt.compile import plugin_plan_compiler
from lumosx_rt.backends.tensorrt_rtx.checks import BACKEND as TENSORRT_RTX
from lumosx_rt.backends.tensorrt_rtx.compile import check_plan_request, plan_compiler
from lumosx_rt.backends.torch.checks import device_facts
from lumosx_rt.calibration.apply.graph import carried, check_carriable
from lumosx_rt.calibration.calibration_file import Calibration, read_calibration
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.onnx.graph import OPSETS
from lumosx_rt.export.onnx.named_values import marked, name_marked
from lumosx_rt.export.onnx.ops import QDQ_NODES, export_ops
from lumosx_rt.kernels.qdq import PLAIN
from lumosx_rt.reference.backbones.ops import Ops
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import sha256_of
from lumosx_rt.reference.scenes.video_size import VideoSize

BACKENDS = ("auto", "onnxruntime", "torch", TENSORRT_RTX, TENSORRT)
DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of a package's linears and attention
Report = Callable[[str], None]


class Compiler(Protocol):
    """How one backend's part of an engine is made."""

    @property
    def backend(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def document(self) -> Calibration | None:
        """The scales that the result carries, in FP8."""

    @property
    def files(self) -> tuple[str, ...]:
        """The graphs, packages or plans it makes, inside the engine, all in one folder of it."""

    @property
    def device(self) -> dict[str, Any]:
        """What the manifest says it was built for."""

    @property
    def provider(self) -> Provider | None:
        """Where the result is compared with the reference; None: it cannot run here, and `compile`
        compares what it was made of, under "parity" of its facts."""

    @property
    def options(self) -> dict[str, Any]:
        """What else the result depends on."""

    @property
    def versions(self) -> dict[str, str]: ...

    @property
    def bytes_per_parameter(self) -> int:
        """Of disk, at the most while it works."""

    @property
    def remedy(self) -> str:
        """What to try where the result is not close enough."""

    def limits(self, defaults: dict[str, Any], max_references: int) -> Limits:
        """The sizes that the result serves; defaults: of the checkpoint's videos."""

    def compile(
        self, model: LumosX, engine: Path, limits: Limits, report: Report
    ) -> dict[str, Any]:
        """Write `files` and what belongs beside them into the engine; returns facts to report."""

    def vouches_for(self, engine: Path) -> bool:
        """Whether finished `files` that lie there may be used."""


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
        return {"fp8": 1, "fp16": 2}.get(self.precision, 4)

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


@dataclass(frozen=True)
class TorchCompiler:
    """One AOTInductor package for one kind of processor or GPU, and one minor version of torch."""

    precision: str
    provider: Provider
    """Where it will run, "cpu" or "cuda"."""
    document: Calibration | None = None
    backend = "torch"
    files = (PACKAGE,)

    @property
    def dtype(self) -> torch.dtype:
        """Of linears and attention; in FP8, of those that stay in high precision."""
        if self.precision == "fp8":
            return torch.float32 if self.provider == "cpu" else torch.bfloat16
        return DTYPES[self.precision]

    @property
    def device(self) -> dict[str, Any]:
        return device_facts(self.provider)

    @property
    def options(self) -> dict[str, Any]:
        return {"backend": self.backend, "device": self.device}

    @property
    def versions(self) -> dict[str, str]:
        return versions()

    @property
    def bytes_per_parameter(self) -> int:
        # the weights lie in an object file, a library and the package before the first two go
        return 3 * (1 if self.precision == "fp8" else self.dtype.itemsize)

    @property
    def remedy(self) -> str:
        return "Try --precision fp32, or --backend onnxruntime"

    def limits(self, defaults: dict[str, Any], max_references: int) -> Limits:
        return Limits.any_size(max_references)

    def compile(
        self, model: LumosX, engine: Path, limits: Limits, report: Report
    ) -> dict[str, Any]:
        from lumosx_rt.export.aoti import compile_package

        report(f"device: {', '.join(self.device.values())}")
        if self.provider == "cuda":
            _fast_ops(model.config.head_dim)  # or not at all
        path, own = engine / PACKAGE, recast(model, self.dtype, self.provider)
        with _ops(self.provider, own, self.document) as ops:
            facts = compile_package(own, path, ops=ops, report=report)
        cache.note_compiled(sha256_of(path))
        return facts | {"device": self.device}

    def vouches_for(self, engine: Path) -> bool:
        return cache.compiled_here(sha256_of(engine / PACKAGE))


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
        document = _document(precision, calibration, random)
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
        return plugin_plan_compiler(precision, max_seeds, max_size, weight_streaming)
    if targets or max_seeds or max_size or buckets or weight_streaming:
        raise LumosXError(
            "targets, max_seeds, max_size, buckets, weight_streaming: only plans have them; leave "
            f"them away, or take --backend {TENSORRT_RTX}"
        )
    if precision not in (None, *PRECISIONS):
        raise LumosXError(f"precision: got '{precision}', accepted are {', '.join(PRECISIONS)}")
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
    document = _document(precision, calibration, random)
    if document is not None:
        check_carriable(document)
    if precision == "fp8" and opset not in (None, OPSETS[0]):
        raise LumosXError(f"opset: got {opset}, fp8 is opset {OPSETS[0]}; leave it away")
    return OnnxCompiler(precision or "fp32", opset or OPSETS[0], document)


def _document(precision: str | None, calibration: Path | None, random: bool) -> Calibration | None:
    """The calibration of a request in FP8. Raises LumosXError where one is without the other."""
    if precision == "fp8" and calibration is None and not random:
        raise LumosXError(
            "precision: got 'fp8', which needs scales; make them with `lumosx-rt calibrate "
            "CHECKPOINT -o calibration.json` and name the file with --calibration"
        )
    if precision != "fp8" and calibration is not None:
        raise LumosXError(
            f"calibration: got {calibration}, only fp8 uses it; add --precision fp8, or leave it "
            "away"
        )
    return None if calibration is None else read_calibration(calibration)


def _torch_compiler(
    precision: str | None,
    opset: int | None,
    device: str,
    calibration: Path | None,
    random: bool,
) -> TorchCompiler:
    if opset is not None:
        raise LumosXError(
            f"opset: got {opset}, a package has none; leave it away, or --backend onnxruntime"
        )
    if precision not in (None, "fp8", *DTYPES):
        raise LumosXError(
            f"precision: got '{precision}', torch takes {', '.join(DTYPES)} or fp8; fp16 is "
            "--backend onnxruntime"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise LumosXError("device: got 'cuda', torch finds no GPU here; accepted is --device cpu")
    if cpp_compiler() is None:
        raise LumosXError(
            "backend: 'torch' compiles C++, and there is no C++ compiler here; install one "
            "(Debian: apt install g++) or name it in CXX, or take --backend onnxruntime"
        )
    document = _document(precision, calibration, random)
    if device == "cpu" or not torch.cuda.is_available():
        if document is not None:
            check_carriable(document)
        return TorchCompiler(precision or "fp32", "cpu", document)
    return TorchCompiler(precision or "bf16", "cuda", document)


def cpp_compiler() -> str | None:
    """The C++ compiler that inductor calls, if it is there: CXX, else g++ (on a Mac clang++)."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX") or usual)


@contextmanager
def _ops(device: Provider, model: LumosX, document: Calibration | None) -> Iterator[Ops]:
    """The operations that are compiled: plain ones on a CPU, our kernels on a GPU. In FP8 the
    model's linears are replaced while the block runs."""
    if device == "cpu":
        from lumosx_rt.export.onnx.ops import PACKAGE_OPS

        if document is None:
            yield PACKAGE_OPS
        else:
            with carried(model, document, PLAIN, PACKAGE_OPS) as ops:
                yield ops
        return
    fast = _fast_ops(model.config.head_dim)
    if document is None:
        yield fast
        return
    from lumosx_rt.calibration.apply.kernels import on_kernels

    try:
        fp8 = on_kernels(model, document, torch.cuda.get_device_capability())
    except ValueError as error:
        raise _without_kernels(error) from None
    with fp8 as ops:
        yield ops


def _fast_ops(head_dim: int) -> Ops:
    """Our kernels for the GPU here. Raises LumosXError where it has none."""
    try:
        from lumosx_rt.kernels.fused import fused_ops

        return fused_ops(torch.cuda.get_device_capability(), head_dim=head_dim)
    except (ImportError, ValueError) as error:
        raise _without_kernels(error) from None


def _without_kernels(error: Exception) -> LumosXError:
    return LumosXError(
        f"device: the kernels for this GPU cannot be had ({error}); build with --device cpu, or "
        "--backend onnxruntime"
    )

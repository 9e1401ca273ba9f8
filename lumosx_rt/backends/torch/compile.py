"""One AOTInductor package for one kind of processor or GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import PACKAGE
from lumosx_rt.artifact.versions import versions
from lumosx_rt.backends.common.devices import Provider, device_facts
from lumosx_rt.calibration.apply.graph import carried
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.formats import format_of
from lumosx_rt.calibration.sites import part_of
from lumosx_rt.export.limits import Limits
from lumosx_rt.kernels.qdq import PLAIN
from lumosx_rt.reference.backbones.ops import Ops
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.files import sha256_of
from lumosx_rt.reference.progress import Report

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of a package's linears and attention


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
        if format_of(self.precision).quantized:
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
        # the weights are in an object file, a library and the package before the first two go
        return 3 * format_of(self.precision).weight_bytes

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
        chosen: dict[str, Any] = {}
        if self.provider == "cuda":
            chosen["self_attention"] = _self_attention(model.config.head_dim, self.document)
            report(f"self-attention: {chosen['self_attention']}")
        path, own = engine / PACKAGE, recast(model, self.dtype, self.provider)
        with _ops(self.provider, own, self.document) as ops:
            facts = compile_package(own, path, ops=ops, report=report)
        cache.note_compiled(sha256_of(path))
        return facts | {"device": self.device} | chosen

    def vouches_for(self, engine: Path) -> bool:
        return cache.compiled_here(sha256_of(engine / PACKAGE))


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


def _self_attention(head_dim: int, document: Calibration | None) -> str:
    """Return the way self-attention is done on the GPU here. Raises LumosXError where none is."""
    _fast_ops(head_dim)
    from lumosx_rt.kernels.fused import named
    from lumosx_rt.kernels.tiles import architecture, e4m3_attention_pays

    capability = torch.cuda.get_device_capability()
    sites = () if document is None else document.quantized
    if e4m3_attention_pays(architecture(capability)) and any(part_of(s) == "self" for s in sites):
        return "triton, e4m3"
    return named("auto", capability)


def _fast_ops(head_dim: int) -> Ops:
    """Our kernels for the GPU here. Raises LumosXError where it has none."""
    try:
        from lumosx_rt.kernels.fused import fused_ops

        return fused_ops(torch.cuda.get_device_capability(), head_dim=head_dim)
    except (ImportError, ValueError) as error:
        raise _without_kernels(error) from None


def _without_kernels(error: Exception) -> Unsupported:
    return Unsupported(
        f"device: the kernels for this GPU cannot be had ({error}); build with --device cpu, or "
        "--backend onnxruntime"
    )

"""The backend tensorrt-rtx: what it can be asked for, and how its part of an engine is made.

A plan is compiled for named GPUs and needs none of them to be built. Its weights are part of it
(TensorRT-RTX makes refittable or stripped plans only where there is a GPU): another checkpoint is
another build.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from lumosx_rt import cache
from lumosx_rt.backends.eager import recast
from lumosx_rt.backends.onnxruntime import OnnxRuntimeBackend
from lumosx_rt.backends.plan import BACKEND, import_tensorrt_rtx
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.tensorrt import Report, attention_sites, build_plan
from lumosx_rt.manifest import PLAN, sha256_of
from lumosx_rt.parity import forward_parity
from lumosx_rt.reference.binding import VideoSize
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.model import LumosX
from lumosx_rt.versions import versions

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
USUAL_TARGETS = ("sm_89", "sm_120")
REFUSED = {
    "sm_75": "TensorRT-RTX has no float32 products for it, which the time embedding and head are",
    **dict.fromkeys(
        ("sm_90", "sm_100", "sm_103"), "TensorRT-RTX compiles for no such datacenter GPU"
    ),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MAX_SEEDS = 4
OPSET = 23


@dataclass(frozen=True)
class PlanCompiler:
    """One TensorRT-RTX plan for the named kinds of GPU, for every grouping up to a video size."""

    precision: str
    targets: tuple[str, ...]
    max_seeds: int
    max_size: VideoSize | None
    """The largest video; None is the checkpoint's own."""
    weight_streaming: bool
    backend = BACKEND
    file = PLAN
    provider: ClassVar[None] = None
    remedy = "The graph that the plan is made of is wrong; please report it"

    @property
    def device(self) -> dict[str, Any]:
        return {"targets": ",".join(self.targets)}

    @property
    def options(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "device": self.device,
            "max_seeds": self.max_seeds,
            "max_size": None if self.max_size is None else list(self.max_size.grid),
            "weight_streaming": self.weight_streaming,
        }

    @property
    def versions(self) -> dict[str, str]:
        import onnx

        return versions(onnx=onnx.__version__, tensorrt_rtx=import_tensorrt_rtx().__version__)

    @property
    def bytes_per_parameter(self) -> int:
        return 4  # graph and plan, before the graph goes

    def limits(self, defaults: dict[str, Any], max_references: int) -> Limits:
        size = self.max_size or VideoSize(defaults["frames"], defaults["height"], defaults["width"])
        return Limits.around(size.grid, max_references=max_references, max_seeds=self.max_seeds)

    def compile(self, model: LumosX, path: Path, limits: Limits, report: Report) -> dict[str, Any]:
        """Uses the model up: a plan takes several times its weights in memory while it is made."""
        from lumosx_rt.export.graph import export_onnx
        from lumosx_rt.export.ops import PLAN_OPS

        own = recast(model, DTYPES[self.precision])
        model.to("meta")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            graph = Path(folder, "model.onnx")
            facts = export_onnx(own, graph, opset=OPSET, ops=PLAN_OPS, report=report)
            report("checking the graph against the reference")
            parity = _graph_parity(own, graph)
            layers = own.config.num_layers
            del own
            facts |= build_plan(
                import_tensorrt_rtx(),
                graph,
                path,
                sites=attention_sites(layers),
                precision=self.precision,
                limits=limits,
                targets=self.targets,
                weight_streaming=self.weight_streaming,
                report=report,
            )
        cache.note_compiled(sha256_of(path))
        return facts | {"device": self.device, "parity": parity}

    def vouches_for(self, path: Path) -> bool:
        return cache.compiled_here(sha256_of(path))


def _graph_parity(model: LumosX, graph: Path) -> list[dict[str, Any]]:
    """The graph that TensorRT is given, in float32, against the reference with the same weights."""
    from lumosx_rt.export.widened import widen

    widened = graph.with_name("widened.onnx")
    widen(graph, widened)
    return forward_parity(recast(model, torch.float32), OnnxRuntimeBackend(widened, "cpu"))


def plan_compiler(
    precision: str | None = None,
    targets: str | Sequence[str] | None = None,
    max_seeds: int | None = None,
    max_size: VideoSize | None = None,
    weight_streaming: bool = False,
) -> PlanCompiler:
    """The compiler for a request; targets like "sm_89,sm_120".

    Raises LumosXError for what TensorRT-RTX cannot do, naming what can, and where it is missing.
    """
    chosen = USUAL_TARGETS if targets is None else _split(targets)
    _check_targets(chosen)
    _check_precision(precision, chosen)
    seeds = MAX_SEEDS if max_seeds is None else max_seeds
    most = Limits.any_size(1).seeds.most
    if not 1 <= seeds <= most:
        raise LumosXError(f"max_seeds: got {seeds}, accepted are 1 to {most}")
    import_tensorrt_rtx()
    return PlanCompiler(precision or "bf16", chosen, seeds, max_size, weight_streaming)


def _split(targets: str | Sequence[str]) -> tuple[str, ...]:
    words = targets.split(",") if isinstance(targets, str) else targets
    return tuple(dict.fromkeys(word.strip() for word in words))


def _check_targets(targets: Sequence[str]) -> None:
    for target in targets:
        if target in REFUSED:
            raise LumosXError(
                f"targets: got '{target}', {REFUSED[target]}; build with --backend torch on a "
                "machine that has one"
            )
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise LumosXError(
            f"targets: got '{','.join(unknown)}', accepted are {', '.join(TARGETS)} (one or more, "
            "with commas between)"
        )


def _check_precision(precision: str | None, targets: Sequence[str]) -> None:
    if precision == "fp8":
        without = [target for target in targets if target in ("sm_80", "sm_86")]
        never = f", and {', '.join(without)} cannot compute in it" if without else ""
        raise LumosXError(
            f"precision: got 'fp8', which is not built yet{never}; accepted are bf16 and fp16"
        )
    if precision not in (None, *DTYPES):
        raise LumosXError(
            f"precision: got '{precision}', tensorrt-rtx takes {' or '.join(DTYPES)}, because its "
            "fused attention has no fp32; fp32 is --backend torch or onnxruntime"
        )

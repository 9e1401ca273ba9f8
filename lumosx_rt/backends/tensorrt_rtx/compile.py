"""The backend tensorrt-rtx: what it can be asked for, and how its part of an engine is made.

A plan is compiled for named GPUs and needs none of them to be built. Its weights are part of it
(TensorRT-RTX makes refittable or stripped plans only where there is a GPU): another checkpoint is
another build.

In FP8 attention needs a static number of keys, so such an engine serves one video size, and has one
plan for each bucket of references: a scene takes the first that its references fit in.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import PLAN, plan_of
from lumosx_rt.artifact.versions import versions
from lumosx_rt.backends.common.compiler import calibration_for
from lumosx_rt.backends.common.forward_parity import forward_parity
from lumosx_rt.backends.tensorrt_rtx.checks import BACKEND, import_tensorrt_rtx
from lumosx_rt.backends.tensorrt_rtx.fp8 import Job, fp8_jobs, widened
from lumosx_rt.calibration.apply.graph import check_carriable
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.formats import FORMATS, Format, format_of
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.tensorrt.plan import DTYPES, MAX_SEEDS, attention_sites, build_plan
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.files import sha256_of
from lumosx_rt.reference.packages import EXPORT, require
from lumosx_rt.reference.progress import Report
from lumosx_rt.reference.sampling.inputs import LIMITS
from lumosx_rt.reference.scenes.video_size import VideoSize

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
USUAL_TARGETS = ("sm_89", "sm_120")
REFUSED = {
    "sm_75": "TensorRT-RTX has no float32 products for it, which the time embedding and head are",
    **dict.fromkeys(
        ("sm_90", "sm_100", "sm_103"), "TensorRT-RTX compiles for no such datacenter GPU"
    ),
}
FP8_TARGETS = ("sm_89", "sm_120", "sm_121")  # that compute in fp8
BUCKETS = (4, 16)
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
    document: Calibration | None = None
    buckets: tuple[int, ...] = ()
    """In FP8, the references that each plan serves, fewest first."""
    backend = BACKEND
    provider: ClassVar[None] = None
    remedy = "The graph that the plan is made of is wrong; please report it"

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(map(plan_of, self.buckets)) or (PLAN,)

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
            "buckets": list(self.buckets),
        }

    @property
    def versions(self) -> dict[str, str]:
        import onnx

        return versions(onnx=onnx.__version__, tensorrt_rtx=import_tensorrt_rtx().__version__)

    @property
    def bytes_per_parameter(self) -> int:
        # graph and plans, before the graph goes
        return 1 + len(self.buckets) if self.document is not None else 4

    def limits(self, defaults: dict[str, Any], max_references: int) -> Limits:
        size = self.max_size or VideoSize(defaults["frames"], defaults["height"], defaults["width"])
        if self.document is None:
            return Limits.around(size.grid, max_references=max_references, max_seeds=self.max_seeds)
        return Limits.exactly(size.grid, max_references=self.buckets[-1], max_seeds=self.max_seeds)

    def compile(
        self, model: LumosX, engine: Path, limits: Limits, report: Report
    ) -> dict[str, Any]:
        """Uses the model up: a plan takes several times its weights in memory while it is made."""
        own = recast(model, DTYPES.get(self.precision, torch.bfloat16))
        model.to("meta")
        layers = own.config.num_layers
        target = (engine / self.files[0]).parent
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as folder:
            graph = Path(folder, "model.onnx")
            if self.document is None:
                facts, jobs = _wide(own, graph, limits, report)
            else:
                facts, jobs = fp8_jobs(own, self.document, graph, limits, self.buckets, report)
            del own
            made = []
            for job in jobs:
                if len(jobs) > 1:
                    report(f"{job.file}: scenes of up to {job.limits.references.most} references")
                built = build_plan(
                    import_tensorrt_rtx(),
                    job.graph,
                    engine / job.file,
                    sites=attention_sites(layers),
                    precision="bf16" if self.document is not None else self.precision,
                    limits=job.limits,
                    targets=self.targets,
                    weight_streaming=self.weight_streaming,
                    fp8=job.fp8,
                    report=report,
                )
                made.append(built | {"bytes": (engine / job.file).stat().st_size})
        for file in self.files:
            cache.note_compiled(sha256_of(engine / file))
        return facts | facts_of(made, self.buckets) | {"device": self.device}

    def vouches_for(self, engine: Path) -> bool:
        return all(cache.compiled_here(sha256_of(engine / file)) for file in self.files)


def facts_of(made: list[dict[str, Any]], buckets: Sequence[int]) -> dict[str, Any]:
    """Describe the plans made: the last one's layers, and each bucket's where there are several."""
    facts: dict[str, Any] = {
        "compile_seconds": round(sum(plan["compile_seconds"] for plan in made), 1),
        "layers": made[-1]["layers"],
    }
    if buckets:
        facts["buckets"] = {str(most): plan for most, plan in zip(buckets, made, strict=True)}
    return facts


def _wide(
    model: LumosX, graph: Path, limits: Limits, report: Report
) -> tuple[dict[str, Any], list[Job]]:
    """Return the graph of a plan in half precision."""
    from lumosx_rt.export.onnx.graph import export_onnx
    from lumosx_rt.export.onnx.ops import PLAN_OPS

    facts = export_onnx(model, graph, opset=OPSET, ops=PLAN_OPS, report=report)
    report("checking the graph against the reference")
    facts["parity"] = forward_parity(recast(model, torch.float32), widened(graph))
    return facts, [Job(PLAN, graph, limits)]


class PlanRequest(Protocol):
    """What is asked of plans."""

    @property
    def precision(self) -> str: ...

    @property
    def targets(self) -> str | Sequence[str] | None: ...

    @property
    def max_seeds(self) -> int | None: ...

    @property
    def max_size(self) -> VideoSize | None: ...

    @property
    def buckets(self) -> str | Sequence[int] | None: ...

    @property
    def weight_streaming(self) -> bool: ...

    @property
    def calibration(self) -> Path | None: ...


def plan_compiler(asked: PlanRequest, random: bool) -> PlanCompiler:
    """Check a request; targets like "sm_89,sm_120", buckets like "4,16".

    Raises LumosXError for what TensorRT-RTX cannot do, naming what can, and where it is missing.
    """
    chosen = USUAL_TARGETS if asked.targets is None else _split(asked.targets)
    _check_targets(chosen)
    _check_precision(asked.precision, chosen)
    seeds = MAX_SEEDS if asked.max_seeds is None else asked.max_seeds
    most = Limits.any_size(1).seeds.most
    if not 1 <= seeds <= most:
        raise Unsupported(f"max_seeds: got {seeds}, accepted are 1 to {most}")
    numbers = format_of(asked.precision)
    buckets = _buckets(numbers, asked.buckets)
    document = calibration_for(numbers, asked.calibration, random)
    if document is not None:
        check_carriable(document)
    require(f"--backend {BACKEND}", *EXPORT, "onnxruntime")
    import_tensorrt_rtx()
    return PlanCompiler(
        asked.precision, chosen, seeds, asked.max_size, asked.weight_streaming, document, buckets
    )


def _buckets(numbers: Format, buckets: str | Sequence[int] | None) -> tuple[int, ...]:
    if not numbers.quantized:
        if buckets is not None:
            raise Unsupported(
                f"buckets: got '{buckets}', only fp8 has several plans; leave it away, or add "
                "--precision fp8"
            )
        return ()
    try:
        words = buckets.split(",") if isinstance(buckets, str) else buckets
        found = BUCKETS if words is None else tuple(int(word) for word in words)
    except ValueError:
        found = ()
    most = LIMITS["references"][1]
    if not found or list(found) != sorted(set(found)) or not 1 <= found[0] <= found[-1] <= most:
        raise Unsupported(
            f"buckets: got '{buckets}', accepted are rising numbers of references, 1 to {most}, "
            "with commas between, like 4,16"
        )
    return found


def _split(targets: str | Sequence[str]) -> tuple[str, ...]:
    words = targets.split(",") if isinstance(targets, str) else targets
    return tuple(dict.fromkeys(word.strip() for word in words))


def _check_targets(targets: Sequence[str]) -> None:
    for target in targets:
        if target in REFUSED:
            raise Unsupported(
                f"targets: got '{target}', {REFUSED[target]}; build with --backend torch on a "
                "machine that has one"
            )
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise Unsupported(
            f"targets: got '{','.join(unknown)}', accepted are {', '.join(TARGETS)} (one or more, "
            "with commas between)"
        )


def _check_precision(precision: str, targets: Sequence[str]) -> None:
    without = [target for target in targets if target not in FP8_TARGETS]
    quantized = precision in FORMATS and FORMATS[precision].quantized
    if quantized and without:
        raise Unsupported(
            f"precision: got 'fp8', {', '.join(without)} cannot compute in it; accepted are "
            f"--targets {','.join(FP8_TARGETS)}, or --precision bf16"
        )
    if not quantized and precision not in DTYPES:
        raise Unsupported(
            f"precision: got '{precision}', tensorrt-rtx takes {', '.join(DTYPES)} or fp8, because "
            "its fused attention has no fp32; fp32 is --backend torch or onnxruntime"
        )

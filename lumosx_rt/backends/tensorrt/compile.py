"""The backend tensorrt: a plan for this machine's GPU, made of our kernels as plugins.

TensorRT builds where it runs. Self-attention, the references' cross-attention and their rotation
are plugins compiled ahead of time, so that the plan holds their code; the rest is TensorRT's own.
The finished plan is compared with the reference on the GPU, like any engine.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import PLAN
from lumosx_rt.artifact.versions import versions
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.backends.common.forward_parity import FORWARD_CASES
from lumosx_rt.backends.tensorrt.checks import (
    BACKEND,
    declare_plugins,
    gpu_here,
    import_tensorrt,
)
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.tensorrt.plan import DTYPES, MAX_SEEDS, build_plan
from lumosx_rt.export.tensorrt.variants import CLASSIC, plugin_nodes
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.files import sha256_of
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.packages import EXPORT, require
from lumosx_rt.reference.progress import Report
from lumosx_rt.reference.scenes.video_size import VideoSize


@dataclass(frozen=True)
class PluginPlanCompiler:
    """One plan for the kind of GPU here, for every grouping up to a video size."""

    precision: str
    max_seeds: int
    max_size: VideoSize | None
    """The largest video; None is the checkpoint's own."""
    weight_streaming: bool
    backend = BACKEND
    document = None
    files = (PLAN,)
    provider: ClassVar[Provider] = "cuda"
    remedy = "Try --backend torch, which has the same kernels"

    @property
    def device(self) -> dict[str, Any]:
        return gpu_here()

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
        import triton

        trt = import_tensorrt()
        return versions(onnx=onnx.__version__, tensorrt=trt.__version__, triton=triton.__version__)

    @property
    def bytes_per_parameter(self) -> int:
        return 4  # graph and plan, before the graph goes

    def limits(self, defaults: dict[str, Any], max_references: int) -> Limits:
        size = self.max_size or VideoSize(defaults["frames"], defaults["height"], defaults["width"])
        limits = Limits.around(size.grid, max_references=max_references, max_seeds=self.max_seeds)
        _check_room(limits)
        return limits

    def compile(
        self, model: LumosX, engine: Path, limits: Limits, report: Report
    ) -> dict[str, Any]:
        from lumosx_rt.export.onnx.opaque_nodes import export_plugin_onnx

        own = recast(model, DTYPES[self.precision])
        layers, target = own.config.num_layers, engine / PLAN
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            graph = Path(folder, "model.onnx")
            facts = export_plugin_onnx(own, graph, report=report)
            del own
            trt = import_tensorrt()
            report(f"declaring plugins: {', '.join(declare_plugins(trt))}")
            plugins = plugin_nodes(graph)
            facts |= build_plan(
                trt,
                graph,
                target,
                sites=[f"blocks.{block}.cross.video" for block in range(layers)],
                precision=self.precision,
                limits=limits,
                weight_streaming=self.weight_streaming,
                dialect=CLASSIC,
                plugins=plugins,
                report=report,
            )
        facts["layers"]["plugins"] = dict(Counter(plugins.values()))
        cache.note_compiled(sha256_of(target))
        return facts | {"device": self.device}

    def vouches_for(self, engine: Path) -> bool:
        return cache.compiled_here(sha256_of(engine / PLAN))


class PlanRequest(Protocol):
    """What is asked of a plan."""

    @property
    def precision(self) -> str: ...

    @property
    def max_seeds(self) -> int | None: ...

    @property
    def max_size(self) -> VideoSize | None: ...

    @property
    def weight_streaming(self) -> bool: ...


def plugin_plan_compiler(asked: PlanRequest) -> PluginPlanCompiler:
    """Check a request.

    Raises LumosXError for what the backend tensorrt cannot do, naming what can, and where TensorRT
    or a GPU is missing.
    """
    if asked.precision not in DTYPES:
        raise Unsupported(
            f"precision: got '{asked.precision}', tensorrt takes {' or '.join(DTYPES)}; fp32 is "
            "--backend torch or onnxruntime, fp8 torch or tensorrt-rtx"
        )
    seeds = MAX_SEEDS if asked.max_seeds is None else asked.max_seeds
    most = Limits.any_size(1).seeds.most
    if not 2 <= seeds <= most:
        raise Unsupported(
            f"max_seeds: got {seeds}, accepted are 2 to {most}: a plan is checked with two"
        )
    require("--backend tensorrt", *EXPORT)
    import_tensorrt()
    gpu_here()
    return PluginPlanCompiler(asked.precision, seeds, asked.max_size, asked.weight_streaming)


def _check_room(limits: Limits) -> None:
    """Raise LumosXError where a plan would be too small for what it is checked on."""
    for keys, _ in FORWARD_CASES:
        layout = SceneLayout.from_key(keys[0])
        sizes = (layout.video_frames, layout.height, layout.width, layout.references)
        most = (limits.frames.most, limits.height.most, limits.width.most, limits.references.most)
        if any(size > room for size, room in zip(sizes, most, strict=True)):
            raise Unsupported(
                f"max_size, max_references: the plan would serve {most} frames, rows, columns "
                f"(in tokens) and references, and is checked on {sizes}; build it for more"
            )

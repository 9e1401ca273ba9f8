"""An ONNX graph -> a TensorRT plan, judged by the builder's own layer table before it is kept.

The TensorRT module is a parameter: `tensorrt_rtx`, which builds without a GPU, and `tensorrt` share
everything here; what differs is a `Dialect`.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch

from lumosx_rt.export.limits import Limits
from lumosx_rt.export.tensorrt.layer_table import HEADING, problems, product_problems, summary
from lumosx_rt.export.tensorrt.variants import RTX, Dialect, missing_plugins, name_plugins
from lumosx_rt.kernels.qdq import PROBABILITY_SCALE
from lumosx_rt.reference.errors import Unsupported, listing
from lumosx_rt.reference.progress import Report

_TICK = 0.1  # seconds
_TOLD = (None, "Building engine")  # parents of the phases that are worth a line
_SCRATCH = "Max Scratch Memory: "
_WHOLE = ("self.video", "self.groups", "cross.video", "cross.references")
_PRUNED = ("self.video", "cross.video")  # the last block: references give keys and values only


class Fp8(NamedTuple):
    """What of a graph is computed in e4m3."""

    attention: Collection[str] = ()
    """Sites, of `attention_sites`, whose queries, keys and values are e4m3 in the graph, and whose
    probabilities TensorRT quantizes, by 1/448."""
    products: Mapping[str, str] = {}
    """Nodes of matrix products -> what they belong to, as `blocks.0.self_attn.q`."""


NOTHING = Fp8()


def attention_sites(num_layers: int) -> list[str]:
    """Return every attention of a model, in the order of its graph: `blocks.0.self.video`, ..."""
    return [
        f"blocks.{block}.{part}"
        for block in range(num_layers)
        for part in (_WHOLE if block + 1 < num_layers else _PRUNED)
    ]


def build_plan(
    trt: Any,
    graph: Path,
    path: Path,
    *,
    sites: Sequence[str],
    precision: str,
    limits: Limits,
    targets: Sequence[str] = (),
    weight_streaming: bool = False,
    fp8: Fp8 = NOTHING,
    dialect: Dialect = RTX,
    plugins: Mapping[str, str] = {},
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Write `path` (.plan); returns facts for the report.

    trt: the module tensorrt_rtx or tensorrt; dialect: its own. graph: .onnx, strongly typed; sites:
    its attention, `attention_sites`; plugins: its opaque nodes, {name: kind}. precision: "bf16" or
    "fp16", that of attention. targets: compute capabilities ("sm_89") to compile for; without any,
    that of this machine's GPU. fp8: what has to be in e4m3. report: shown what TensorRT does.
    Raises LumosXError where it cannot build, or where an attention did not become one fused kernel,
    an 8-bit product or a plugin is none, or an input is not read; nothing is left at `path` then.
    An interrupted build stops at TensorRT's next step.
    """
    started = time.monotonic()
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(dialect.creation(trt))
    parser = trt.OnnxParser(network, log)  # holds the weights that the network points to
    for flag in dialect.parser_flags:
        parser.set_flag(getattr(trt.OnnxParserFlag, flag))
    if not parser.parse_from_file(str(graph)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise Unsupported(listing(f"{graph.name}: TensorRT cannot parse it", reasons))
    named = _name_attention(trt, network, sites)
    own = name_plugins(trt, network, plugins)
    constants = [_quantize_softmax(trt, network, named[site]) for site in fp8.attention]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or there is no layer table
    if weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    for flag in dialect.without:
        config.clear_flag(getattr(trt.BuilderFlag, flag))
    _aim(trt, config, targets)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        profile.set_shape(tensor.name, *limits.shapes(tensor.name, tuple(tensor.shape)))
    config.add_optimization_profile(profile)

    plan = _build(trt, builder, network, config, report)
    del constants  # the network only pointed to them
    if plan is None:
        raise Unsupported(log.refusal("TensorRT cannot build the plan"))
    layers = dialect.layers(trt, log, log.table, plan)
    wrong = log.warnings_of("Unused Input")
    wrong += problems(layers, sites, [tensor.name for tensor in inputs], precision, fp8.attention)
    if not dialect.judged:
        report(f"TensorRT, worth knowing: {'; '.join(wrong) or 'nothing'}")
        wrong = missing_plugins(layers, own)
    wrong += product_problems(layers, fp8.products)
    if wrong:
        raise Unsupported(listing("the plan is not what the model asks for", wrong))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(memoryview(plan))
    return {
        "compile_seconds": round(time.monotonic() - started, 1),
        "layers": summary(layers, sites, fp8.products) | {"scratch_bytes": log.scratch_bytes},
    }


def _log(trt: Any) -> Any:
    """A TensorRT logger that keeps what is needed: reasons, warnings, the layer table."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.table = ""
            self.scratch_bytes = 0
            self.told: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if message.startswith(HEADING):
                self.table = message
            elif message.startswith(_SCRATCH):
                self.scratch_bytes = int(message.removeprefix(_SCRATCH).split()[0])
            elif severity <= trt.ILogger.Severity.WARNING:
                self.told.append((severity, message))

        def warnings_of(self, words: str) -> list[str]:
            return [message for _, message in self.told if words in message]

        def refusal(self, what: str) -> str:
            reasons = [m for severity, m in self.told if severity <= trt.ILogger.Severity.ERROR]
            return f"{what}: {' '.join((reasons or ['no reason was given'])[0].split())}"

    return Log()


def _name_attention(trt: Any, network: Any, sites: Sequence[str]) -> dict[str, Any]:
    """Have kernels tell which attention they are; spelled out, attention shows by its softmax."""
    kinds = (trt.LayerType.ATTENTION_OUTPUT, trt.LayerType.SOFTMAX)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = [layer for layer in layers if layer.type in kinds]
    if len(found) != len(sites):
        raise Unsupported(f"the graph has {len(found)} attentions, the model {len(sites)}")
    for layer, site in zip(found, sites, strict=True):
        layer.metadata = f"[ONNX Layer: {site}]"
    return dict(zip(sites, found, strict=True))


def _quantize_softmax(trt: Any, network: Any, layer: Any) -> Any:
    """Have an attention's probabilities in e4m3; returns memory that has to outlive the build."""
    layer.__class__ = trt.IAttentionOutputLayer
    scale = np.array(PROBABILITY_SCALE, np.float32)
    constant = network.add_constant((), trt.Weights(scale)).get_output(0)
    layer.attention.normalization_quantize_scale = constant
    layer.attention.normalization_quantize_to_type = trt.fp8
    return scale


def _aim(trt: Any, config: Any, targets: Sequence[str]) -> None:
    if not targets:
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = getattr(trt.ComputeCapability, target.upper().replace("_", ""))
        if not config.set_compute_capability(capability, index):
            raise Unsupported(f"targets: TensorRT does not accept {target}")


def _build(trt: Any, builder: Any, network: Any, config: Any, report: Report) -> Any:
    """Return the plan, or None. Built beside the calling thread, because that one hears Ctrl-C."""
    stopped, phases = threading.Event(), SimpleQueue[str]()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent in _TOLD:
                phases.put(name)

        def step_complete(self, name: str, step: int) -> bool:
            return not stopped.is_set()

        def phase_finish(self, name: str) -> None:
            pass

    monitor = Monitor()
    config.progress_monitor = monitor
    plans: list[Any] = []

    def build() -> None:
        plans.append(builder.build_serialized_network(network, config))

    worker = threading.Thread(target=build, daemon=True)
    worker.start()
    try:
        while worker.is_alive() or not phases.empty():
            worker.join(_TICK)
            while not phases.empty():
                report(f"TensorRT: {phases.get().lower()}")
    except BaseException:
        stopped.set()
        worker.join()  # what it works on must outlive it
        raise
    return plans[0] if plans else None


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


MAX_SEEDS = 4

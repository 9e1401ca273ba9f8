"""Stages first_forward and forward: the whole model, random weights, and where its time goes.

Exact is the reference in float32. A way in bf16 may err twice as much as the reference in bf16, a
way in e4m3 twice as much as plain torch with the same roundings.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.as_released import AsReleased
from benchmarks.gpu.attention import HALF, plain_e4m3
from benchmarks.gpu.book import Row
from benchmarks.gpu.cases import Bench, Case
from benchmarks.gpu.problem import Problem, Way
from benchmarks.gpu.scale import Scale, layouts_of
from lumosx_rt.kernels.fused import fused_ops
from lumosx_rt.kernels.linear_fp8 import LinearFp8, quantize_mlp
from lumosx_rt.reference.backbones import cost as roofline
from lumosx_rt.reference.backbones.ops import REFERENCE, Ops
from lumosx_rt.reference.backbones.wan import Block, LumosX
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import structure_of

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[], Tensor]
TIMED = (
    "reference",
    "as released",
    "reference, compiled",
    "fused, CUDA graph",
    "fused e4m3, CUDA graph",
)
ALONE = ("reference", "fused, CUDA graph")  # without references, which is what they cost
FIRST = ("reference", "fused, CUDA graph")  # before all else: does it run, and right?
EXPLAINED = ("fused", "fused e4m3")  # launched one by one, where a profiler sees them
KERNELS = 12


def cases(bench: Bench) -> Iterator[Case]:
    for key in bench.scale.keys(4, 16):
        for name in TIMED:
            yield Case(name, key, partial(_time, bench, key, name))
        for name in EXPLAINED:
            yield Case(f"kernels of {name}", key, partial(_explain, bench, key, name))
    for key in bench.scale.keys(0):
        for name in ALONE:
            yield Case(name, key, partial(_time, bench, key, name))


def first(bench: Bench) -> Iterator[Case]:
    for key in bench.scale.keys(4):
        for name in FIRST:
            yield Case(name, key, partial(_time, bench, key, name))


def problem(scale: Scale, key: str) -> Problem:
    """One forward of one stream and seed. A way makes its model when it first runs."""
    (layout,) = layouts_of((key,))
    given = inputs(scale, layout)
    capability = (9, 0) if scale.rehearsal else torch.cuda.get_device_capability(scale.device)
    head_dim = scale.config.head_dim

    def model(ops: Ops, e4m3: bool = False) -> LumosX:
        made = random_model(scale, HALF)
        made.ops = ops
        return in_e4m3(made) if e4m3 else made

    def eager(ops: Callable[[], Ops], e4m3: bool = False) -> Run:
        return _once(lambda: partial(model(ops(), e4m3), *given))

    def graphed(ops: Callable[[], Ops], e4m3: bool = False) -> Run:
        return _once(lambda: captured(partial(model(ops(), e4m3), *given), scale.device))

    def released() -> Run:
        ops = AsReleased(layout, head_dim, scale.device).ops()
        return partial(_everything, model(ops), given, layout.video_frames)

    fused = partial(fused_ops, capability, head_dim=head_dim)
    fused_e4m3 = partial(fused, e4m3_attention=True, e4m3_rows=True)
    half = roofline.forward(layout, scale.config)
    e4m3 = roofline.forward(layout, scale.config, "e4m3", "e4m3")
    plain = Ops(self_attention=plain_e4m3)
    ways = {
        "reference": Way(eager(lambda: REFERENCE), "reference", half),
        "as released": Way(_once(released), "reference", half),
        "reference, compiled": Way(
            _once(lambda: partial(compiled(scale, model(REFERENCE)), *given)), "reference", half
        ),
        "fused": Way(eager(fused), "reference", half),
        "fused, CUDA graph": Way(graphed(fused), "reference", half),
        "plain e4m3": Way(eager(lambda: plain, True), "plain e4m3"),
        "fused e4m3": Way(eager(fused_e4m3, True), "plain e4m3", e4m3),
        "fused e4m3, CUDA graph": Way(graphed(fused_e4m3, True), "plain e4m3", e4m3),
    }

    def exact() -> tuple[Tensor, ...]:
        return (random_model(scale, torch.float32)(*given).double(),)

    return Problem(scale.device, exact, lambda out: (out,), ways)


def inputs(scale: Scale, layout: SceneLayout) -> tuple[object, ...]:
    """What a forward is given: one stream, one seed, the middle of the schedule."""
    config, noise = scale.config, scale.noise()
    size = (2 * layout.height, 2 * layout.width)
    words = noise(1, layout.references, config.text_len)
    return (
        noise(1, 1, config.in_dim, layout.video_frames, *size),
        torch.full((1,), 500, device=scale.device),
        noise(1, config.text_len, config.text_dim),
        noise(1, layout.references, config.in_dim, *size),
        (words > 1.3).float(),
        structure_of([layout], config.head_dim).to(scale.device),
    )


def random_model(scale: Scale, dtype: torch.dtype) -> LumosX:
    """The same random weights in every data type, so large that every part of a block counts."""
    noise = scale.noise(2)
    with scale.device:
        model = LumosX(scale.config, dtype).to(scale.device).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        deviation = 0.3 if "modulation" in name else 0.05 if fan_in == 1 else fan_in**-0.5
        values = (noise(*parameter.shape) * deviation).to(HALF)
        parameter.copy_(1 + values if "norm" in name and name.endswith("weight") else values)
    return model


def in_e4m3(model: LumosX) -> LumosX:
    """The model with all linear layers of its blocks in e4m3."""
    for block in model.blocks:
        for attention in (block.self_attn, block.cross_attn):
            for name in ("q", "k", "v", "o"):
                linear = getattr(attention, name)
                setattr(attention, name, LinearFp8(linear))
        assert isinstance(block, Block)
        block.ffn = quantize_mlp(block.ffn)
    return model


def compiled(scale: Scale, model: LumosX) -> LumosX:
    """Block by block: three variants are compiled (first, middle, last), not thirty."""
    torch._dynamo.reset()  # other scenes' variants would count towards its limit
    for block in model.blocks:
        assert isinstance(block, Block)
        block.site = "blocks"  # a name of its own would be compiled for each
        setattr(block, "forward", scale.compiled(block.forward))  # noqa: B010
    return model


def captured(run: Run, device: torch.device) -> Run:
    """A function's kernels as one CUDA graph; itself in a rehearsal."""
    if device.type == "cpu":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _once(make: Callable[[], Run]) -> Run:
    """Calls what `make` returns, which is made at the first call."""
    made: list[Run] = []

    def run() -> Tensor:
        if not made:
            made.append(make())
        return made[0]()

    return run


def _everything(model: nn.Module, given: tuple[object, ...], frames: int) -> Tensor:
    """As released, the references go through the last block and the head, and are thrown away."""
    out: Tensor = model(*given, keep_references=True)
    return out[:, :, :, :frames]


def _time(bench: Bench, key: str, name: str) -> Row:
    problem_of: Problem = bench.latest(problem, bench.scale, key)
    row: Row = {}
    if bench.scale.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        problem_of.ways[name].run()  # makes its model, so weights count
        torch.cuda.synchronize()
        row["peak_gib"] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)
    return problem_of.timed(name) | row


def _explain(bench: Bench, key: str, name: str) -> Row:
    """Time on the device by kernel, the twelve that take most; checked like what is timed."""
    problem_of: Problem = bench.latest(problem, bench.scale, key)
    found = problem_of.judged(name)
    on_gpu = bench.scale.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        problem_of.ways[name].run()
        if on_gpu:
            torch.cuda.synchronize()
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        if on_gpu == (event.device_type == DeviceType.CUDA):
            times[event.name] += event.time_range.elapsed_us() / 1e3
            calls[event.name] += 1
    kernels = [
        {"kernel": kernel[:120], "ms": round(ms, 3), "calls": calls[kernel]}
        for kernel, ms in times.most_common(KERNELS)
    ]
    return found | {"total_ms": round(sum(times.values()), 3), "kernels": kernels}

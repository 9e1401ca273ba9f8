"""How long an engine takes, and how that grows: cases that are measured one after the other.

    cold           a first request in a process of its own
    ceiling        a large matrix product in the engine's arithmetic, on the same device and threads
    request/...    whole requests, their stages and steps, when warm
    references/n, frames/n, size/HxW    one step, everything else as the engine's default
    seeds/n        videos of one request; together/n: of requests that a service batches
    speed-up       steps against the PyTorch reference, in turns; only for an engine that passed
                   `verify`

A step is one call of the backend: both guidance branches, unless guidance is 1. Its useful work
is counted (`roofline.forward`); over its time and the ceiling, it is its share of the roofline.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from lumosx_rt.bench.common.machine import load_average, usable_cores
from lumosx_rt.bench.speed.times import ratio, spread
from lumosx_rt.calibration.formats import format_of
from lumosx_rt.reference.backbones import cost as roofline
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.mechanisms.mechanism import Layout
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import DEFAULT, Backend, random_inputs
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT
from lumosx_rt.runtime.engine import Engine

Row = dict[str, Any]
Case = tuple[str, Callable[[], Row]]
GROUP = 4  # pictures of a person: a face and three attributes
TIME = 500
PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows and columns of the ceiling's
WARM_UP = 2  # calls before one is timed: kernels are loaded, and made, by the first


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured."""

    requests: int = 7
    repeats: int = 9
    """Timed calls at each point of a curve."""
    references: tuple[int, ...] = (0, 1, 2, 4, 8, 12, 16)
    frames: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Shares of the engine's latent frames after the first."""
    sides: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5)
    """Shares of the engine's height and width."""
    seeds: tuple[int, ...] = (1, 2, 4)
    together: tuple[int, ...] = (1, 2, 4)


QUICK = Extent(
    requests=3,
    repeats=3,
    references=(0, 4, 16),
    frames=(0.0, 1.0),
    sides=(0.5, 1.0),
    seeds=(1, 4),
    together=(1, 4),
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine, how its requests are sampled, and the clock that times them."""

    engine: Engine
    settings: dict[str, Any]
    """steps, shift, guidance."""
    extent: Extent = field(default_factory=Extent)
    clock: Callable[[], float] = time.perf_counter

    @property
    def size(self) -> VideoSize:
        return VideoSize(*(self.engine.manifest.defaults[k] for k in ("frames", "height", "width")))

    @property
    def streams(self) -> int:
        return 1 if self.settings["guidance"] == 1.0 else 2


def cases(
    subject: Subject,
    cold: Callable[[], Row],
    ceiling: Callable[[], Row],
    reference: Callable[[], LumosX] | None,
) -> list[Case]:
    """Everything that is measured, by name. reference: makes the weights in PyTorch, where the
    engine may be compared with them."""
    nobody, *_, two = builtin_scenes()
    extent, size = subject.extent, subject.size
    frames, height, width = size.grid

    def layout_of(frames: int, height: int, width: int, people: int) -> Layout:
        sizes = ".".join(map(str, _people(people))) or "-"
        return DEFAULT.layout_from_key(f"{frames}x{height}x{width}+0+{sizes}")

    found: list[Case] = [("cold", cold), ("ceiling", ceiling)]
    for scene in (nobody, two):
        found.append((f"request/{scene.name}", partial(requests, subject, scene)))
    for count in extent.references:
        layout = layout_of(frames, height, width, count)
        found.append((f"references/{count}", partial(step, subject, layout)))
    for latent in sorted({1 + round(share * (frames - 1)) for share in extent.frames}):
        layout = layout_of(latent, height, width, GROUP)
        found.append((f"frames/{4 * latent - 3}", partial(step, subject, layout)))
    for share in extent.sides:
        rows, columns = (max(1, round(share * n)) for n in (height, width))
        layout = layout_of(frames, rows, columns, GROUP)
        found.append((f"size/{16 * rows}x{16 * columns}", partial(step, subject, layout)))
    for count in extent.seeds:
        found.append((f"seeds/{count}", partial(seeds, subject, two, count)))
    for count in extent.together:
        found.append((f"together/{count}", partial(together, subject, two, count)))
    if reference is not None:
        layout = DEFAULT.layout(two, size.grid)
        found.append(("speed-up", partial(speed_up, subject, layout, reference)))
    return found


def measured(
    found: Sequence[Case], known: dict[str, Row], keep: Callable[[Row], None]
) -> Iterator[tuple[str, Row]]:
    """Run the cases that are not known yet; a refusal becomes a row that says why."""
    for name, case in found:
        if name not in known:
            try:
                row = case()
            except LumosXError as error:
                row = {"refused": str(error)}
            known[name] = {"case": name, **row, "load_average": load_average()}
            keep(known[name])
        yield name, known[name]


# -- requests -----------------------------------------------------------------------------------


def requests(subject: Subject, scene: Scene) -> Row:
    """Milliseconds of warm requests: in all, up to the first step, each step, each stage.

    Text and pictures are encoded anew each time (the engine remembers nothing).
    """
    engine, clock = subject.engine, subject.clock
    taken: dict[str, list[float]] = defaultdict(list)
    steps: list[float] = []
    for i in range(1 + subject.extent.requests):
        start = clock()
        engine.text_encoder.encode(scene.caption)
        engine.text_encoder.encode(NEGATIVE_PROMPT)
        text = clock()
        if scene.references:
            fitted = scene.fitted(subject.size.height, subject.size.width)
            engine.vae.encode_images(torch.from_numpy(fitted).permute(0, 3, 1, 2))
        pictures = clock()
        request = engine.prepare(scene, seeds=(i,), **subject.settings)
        prepared, marks, latents = clock(), list[float](), None
        for state in engine.sample(request):
            marks.append(clock())
            latents = state.latents
        assert latents is not None
        engine.decode(request, latents)
        end = clock()
        if i == 0:  # warms up
            continue
        steps += [b - a for a, b in zip(marks, marks[1:], strict=False)]
        for name, seconds in (
            ("request", end - pictures),
            ("to_first_step", marks[1] - pictures),
            ("text", text - start),
            ("pictures", pictures - text),
            ("denoising", marks[-1] - prepared),
            ("decoding", end - marks[-1]),
        ):
            taken[name].append(seconds)
    return {
        "layout": request.layout.key,
        "ms": {name: spread(seconds) for name, seconds in taken.items()} | {"step": spread(steps)},
    }


def seeds(subject: Subject, scene: Scene, count: int) -> Row:
    """Videos an hour where a request asks for several of its scene."""
    engine, clock, taken = subject.engine, subject.clock, []
    for _ in range(2):  # the first warms up
        start = clock()
        engine.generate(scene, seeds=tuple(range(count)), **subject.settings)
        taken.append(clock() - start)
    return {"videos_per_hour": _hourly(count, taken[-1])}


def together(subject: Subject, scene: Scene, count: int) -> Row:
    """Videos an hour of a service that may batch so many requests, twice as many of them asked."""
    clock, asked = subject.clock, 2 * count
    with subject.engine.serve(together=count, waiting=max(16, asked)) as service:
        service.submit(scene, **subject.settings).result()  # warms up
        start = clock()
        waiting = [service.submit(scene, seeds=(i,), **subject.settings) for i in range(asked)]
        for future in waiting:
            future.result()
        seconds = clock() - start
    return {"videos_per_hour": _hourly(asked, seconds), "requests": asked}


# -- steps --------------------------------------------------------------------------------------


def step(subject: Subject, layout: Layout) -> Row:
    """Milliseconds of a step of this layout, of random inputs."""
    subject.engine.check_layout(layout)
    call = _bound(subject.engine.backend, subject, layout)
    for _ in range(WARM_UP):
        velocity = call()
    if not torch.isfinite(velocity).all():
        raise BadInput(f"layout {layout.key}: the velocity is not finite; it is not timed")
    taken = [_seconds(subject, call) for _ in range(subject.extent.repeats)]
    work = roofline.forward(layout, subject.engine.config)
    return {
        "layout": layout.key,
        "tokens": layout.tokens,
        "flops": subject.streams * sum(work.flops.values()),
        "ms": {"step": spread(taken)},
    }


def ceiling(subject: Subject) -> Row:
    """TFLOP/s of a large matrix product of random numbers where the engine runs, the best of some.

    In the engine's arithmetic; of FP8 on a GPU, in bfloat16.
    """
    kind = "cpu" if _on_cpu(subject) else "cuda"
    dtype = arithmetic(subject.engine.manifest.backend, subject.engine.manifest.precision, kind)
    size = PRODUCT[kind]
    a, b = (torch.randn(size, size, device=kind).to(dtype) for _ in range(2))
    threads = torch.get_num_threads()
    torch.set_num_threads(getattr(subject.engine.backend, "threads", None) or threads)

    def product() -> None:
        a @ b
        if kind == "cuda":
            torch.cuda.synchronize()

    try:
        seconds = [_seconds(subject, product) for _ in range(WARM_UP + subject.extent.repeats)]
    finally:
        torch.set_num_threads(threads)
    best = min(seconds[WARM_UP:])
    return {"dtype": str(dtype).removeprefix("torch."), "tflops": 2e-12 * size**3 / best}


def arithmetic(backend: str, precision: str, device: str) -> torch.dtype:
    """Return what an engine multiplies in."""
    if backend == "onnxruntime" or (device == "cpu" and format_of(precision).quantized):
        return torch.float32  # halves are stored only; on a CPU, e4m3 are rounded to
    return {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)


def speed_up(subject: Subject, layout: Layout, reference: Callable[[], LumosX]) -> Row:
    """Return the engine's steps and the eager reference's in turns, on equally many threads."""
    engine = subject.engine
    model = reference().to("cpu" if _on_cpu(subject) else "cuda")
    threads, own = torch.get_num_threads(), getattr(engine.backend, "threads", None)
    torch.set_num_threads(own or threads)
    try:
        calls = [_bound(b, subject, layout) for b in (EagerBackend(model), engine.backend)]
        expected, velocity = (call().clone() for call in calls)
        error = relative_error(velocity, expected)
        if not torch.isfinite(velocity).all():
            raise BadInput(f"layout {layout.key}: the velocity is not finite; it is not timed")
        rounds = [[_seconds(subject, call) for call in calls] for _ in range(_rounds(subject))]
    finally:
        torch.set_num_threads(threads)
    base, taken = (list(times) for times in zip(*rounds, strict=True))
    return {
        "layout": layout.key,
        "threads": min(own or threads, usable_cores()),
        "relative_error": error,
        "reference_ms": spread(base),
        "ms": {"step": spread(taken)},
        **ratio(base, taken),
    }


def _bound(backend: Backend, subject: Subject, layout: Layout) -> Callable[[], torch.Tensor]:
    latents, _, inputs = random_inputs(subject.engine.config, [layout] * subject.streams, 1)
    bound = inputs.changed(template=(inputs.tensors["template"] > 1.3).float())
    return partial(backend.bind(bound), latents, TIME)


def _on_cpu(subject: Subject) -> bool:
    return subject.engine.backend.describe().get("device", "cpu").startswith("cpu")


def _seconds(subject: Subject, call: Callable[[], object]) -> float:
    start = subject.clock()
    call()
    return subject.clock() - start


def _rounds(subject: Subject) -> int:
    return max(5, subject.extent.repeats)


def _hourly(videos: int, seconds: float) -> float | None:
    return round(3600 * videos / seconds, 1) if seconds > 0 else None


def _people(pictures: int) -> tuple[int, ...]:
    """So many pictures as people of `GROUP`, the last with what is left."""
    whole, rest = divmod(pictures, GROUP)
    return (GROUP,) * whole + ((rest,) if rest else ())

"""What shortcuts over neighbouring steps save, and what they do to identity and binding.

    python -m benchmarks.quality.shortcuts out/lossy --list ci
    python -m benchmarks.quality.shortcuts out/lossy -o benchmarks/results/lossy.json

Every held-out scene is made by the exact engine and with each shortcut in turn, from the same
noise, and judged. Time is of the denoising steps alone (the processor's, on one thread), its ratio
that of each scene's own times. A run that was stopped goes on with the same command. Beside the
record lies a picture of time against binding.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.records import write
from benchmarks.sources import stamp
from lumosx_rt.artifact.certificate import standing
from lumosx_rt.artifact.manifest import MANIFEST
from lumosx_rt.backends.onnxruntime.step_cache import CachingBackend
from lumosx_rt.bench.common.folder import append_line, whole_lines
from lumosx_rt.bench.common.machine import machine
from lumosx_rt.bench.common.makers import Sampling
from lumosx_rt.bench.quality.suite import Result, identity_of, run_suite
from lumosx_rt.bench.quality.table import compare, summarise
from lumosx_rt.bench.run import LISTS
from lumosx_rt.bench.speed.times import ratio
from lumosx_rt.drawing.typesetting import framed, stack
from lumosx_rt.reference.charts import Measured, frontier
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import (
    replacing,
    sha256_of,
)
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.denoise import denoise
from lumosx_rt.reference.sampling.inputs import Backend
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.scenes import scene_of
from lumosx_rt.reference.world.story import Story
from lumosx_rt.runtime.engine import Engine, load

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]

Row = dict[str, Any]
ENGINE = Path("engines/tiny")
TRIED = (
    *(Lossy(keys_every=steps) for steps in (2, 4, 12)),
    *(Lossy(skip_below=share) for share in (0.05, 0.1, 0.2, 0.5, 1.0)),
    *(Lossy(2, 0.1), Lossy(4, 0.2), Lossy(12, 0.5)),
)
JUDGED = ("identity", "binding")
SOURCES = (
    *(
        "benchmarks/quality/shortcuts.py",
        "reference/sampling/shortcuts.py",
        "lumosx_rt/backends/onnxruntime/step_cache.py",
    ),
    *(
        "lumosx_rt/backends/onnxruntime/run.py",
        "export/onnx/split.py",
        "export/onnx/named_values.py",
        "export/onnx/graph.py",
    ),
)


class Turn:
    """A scene's request, and what the exact engine made of it, for all who make it again."""

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self.engine, self.sampling = engine, sampling
        self.name = ""
        self.request: Request
        self.exact: torch.Tensor

    def at(self, told: Story) -> None:
        if told.name == self.name:
            return
        self.request = self.engine.prepare(
            scene_of(told),
            size=VideoSize(self.sampling.frames, draw.HEIGHT, draw.WIDTH),
            seeds=(told.seed,),
            steps=self.sampling.steps,
            shift=self.sampling.shift,
            guidance=self.sampling.guidance,
        )
        self.name, (self.exact, _) = told.name, self.sampled(self.engine.backend)

    def sampled(self, backend: Backend) -> tuple[torch.Tensor, float]:
        """Final latents, and the processor's seconds that they took: the less of twice, as the
        first call of a shape sets up its buffers."""
        seconds = []
        for _ in range(2):
            started = time.process_time()
            *_, last = denoise(backend, self.request, self.engine.config.head_dim)
            seconds.append(time.process_time() - started)
        return last.latents, min(seconds)


class Maker:
    """Clips of one variant; what each cost is kept as a line of folder/costs.jsonl."""

    def __init__(self, turn: Turn, lossy: Lossy, backend: Backend, folder: Path) -> None:
        self.turn, self.lossy, self.backend = turn, lossy, backend
        self.folder = folder

    def __call__(self, told: Story) -> NDArray[np.uint8]:
        self.turn.at(told)
        runs = self.backend.runs.copy() if isinstance(self.backend, CachingBackend) else None
        latents, seconds = self.turn.sampled(self.backend)
        cost: Row = {"name": told.name, "seconds": round(seconds, 5)}
        cost["error"] = relative_error(latents, self.turn.exact)
        if runs is not None and isinstance(self.backend, CachingBackend):
            cost["runs"] = dict(self.backend.runs - runs)
        self.folder.mkdir(parents=True, exist_ok=True)
        append_line(self.folder / "costs.jsonl", json.dumps(cost))
        return self.turn.engine.vae.decode_frames_uint8(latents[0])

    def costs(self) -> dict[str, Row]:
        rows = [json.loads(line) for line in whole_lines(self.folder / "costs.jsonl")]
        return {row["name"]: row for row in rows}


def name_of(lossy: Lossy) -> str:
    return f"keys{lossy.keys_every}-skip{lossy.skip_below:g}" if lossy else "exact"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where runs are kept")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/lossy.json"))
    parser.add_argument("--engine", type=Path, default=ENGINE, help="verified, of checkpoints/tiny")
    parser.add_argument("--list", choices=list(LISTS), default="full")
    given = parser.parse_args(arguments)
    if standing(given.engine) != "passed":
        raise LumosXError(f"{given.engine}: lumosx-rt verify it first; there is no time without")
    torch.set_num_threads(1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    chosen, sampling = LISTS[given.list], Sampling()
    engine = load(given.engine, provider="cpu")
    turn = Turn(engine, sampling)
    makers = {}
    for lossy in (EXACT, *TRIED):
        backend = load(given.engine, provider="cpu", lossy=lossy).backend if lossy else None
        place = given.folder / name_of(lossy)
        makers[name_of(lossy)] = Maker(turn, lossy, backend or engine.backend, place / "costs")
    identity = {
        "engine": sha256_of(given.engine / MANIFEST),
        "sampling": vars(sampling),
        "machine": machine(),
        "stamp": stamp(SOURCES)["digest"],
    }
    names = list(makers)
    for i in range(len(chosen.stories)):
        stories = chosen.stories[: i + 1]
        results = {}
        for name in (*names[i % len(names) :], *names[: i % len(names)]):
            what = identity_of("lossy", chosen, identity | {"variant": name})
            results[name] = run_suite(makers[name], stories, given.folder / name / "judged", what)
        if (i + 1) % 10 == 0 or i + 1 == len(chosen.stories):
            print(f"{i + 1} of {len(chosen.stories)} scenes", file=sys.stderr, flush=True)
    record = {
        "what": "shortcuts over neighbouring steps against the exact engine: same scenes, noise",
        "list": chosen.name,
        "scenes": len(chosen.stories),
        "steps": sampling.steps,
        "times": "processor",
        "machine": machine(),
        "stamp": stamp(SOURCES),
        "rows": [row_of(makers[name], makers["exact"], results) for name in names],
    }
    write(record, given.out)
    with replacing(given.out.with_suffix(".png")) as temporary:
        picture(record).save(temporary, format="PNG")
    print(as_text(record))
    return 0


def row_of(maker: Maker, exact: Maker, results: dict[str, list[Result]]) -> Row:
    own, base = maker.costs(), exact.costs()
    names = [result.name for result in results["exact"]]
    seconds, before = ([costs[name]["seconds"] for name in names] for costs in (own, base))
    row: Row = {
        "name": str(maker.lossy) if maker.lossy else "exact",
        "keys_every": maker.lossy.keys_every,
        "skip_below": maker.lossy.skip_below,
        "median_ms": round(1e3 * float(np.median(seconds)), 2),
        "times_as_fast": ratio(before, seconds),
        "relative_error": float(np.median([own[name]["error"] for name in names])),
        "rates": judged(summarise(results[name_of(maker.lossy)])),
    }
    if maker.lossy:
        row["minus exact"] = judged(compare(results[name_of(maker.lossy)], results["exact"]))
        runs = [own[name]["runs"] for name in names]
        steps = sum(run.get("first", run.get("whole", 0)) for run in runs)
        row["whole_steps"] = round(
            sum(run.get("rest", run.get("whole", 0)) for run in runs) / steps, 4
        )
    return row


def judged(summary: Row) -> Row:
    return {metric: summary["groups"]["all"][metric] for metric in JUDGED}


def kind_of(row: Row) -> str:
    keys, skip = row["keys_every"] > 1, row["skip_below"] > 0
    return {(0, 0): "exact", (1, 0): "keys", (0, 1): "skip", (1, 1): "both"}[keys, skip]


def picture(record: Row) -> Image.Image:
    charts = []
    for metric in JUDGED:
        points = []
        for row in record["rows"]:
            rate, label = row["rates"][metric], label_of(row)
            share = 1 / row["times_as_fast"]["ratio"]
            interval = (rate["value"], rate["low"], rate["high"])
            points.append(Measured(kind_of(row), label, share, *interval))
        title = f"{metric.capitalize()} against time, {record['scenes']} scenes, 95 % intervals"
        charts.append(frontier(title, "denoising time, exact = 1", metric, points))
    return framed(stack(charts, 24))


def label_of(row: Row) -> str:
    parts = [f"{row['keys_every']}"] if row["keys_every"] > 1 else []
    return ", ".join(parts + ([f"{row['skip_below']:g}"] if row["skip_below"] else []))


def as_text(record: Row) -> str:
    lines = []
    for row in record["rows"]:
        fast, rates = row["times_as_fast"], row["rates"]
        lines.append(
            f"{row['name']:75s} {fast['ratio']:.2f} ({fast['low']:.2f}-{fast['high']:.2f})"
            f"  error {row['relative_error']:.4f}"
            + "".join(f"  {metric} {rates[metric]['value']:.3f}" for metric in JUDGED)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LumosXError as error:
        sys.exit(f"error: {error}")

"""Time the forward passes of an engine: one step of a request, both guidance branches.

    python -m benchmarks.gpu.time_engine engines/lumosx --layout 21x30x52+1+4 -o times.json

The inputs are random; a step takes latents from the CPU and gives the velocity back to it, as
sampling does.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import lumosx_rt as rt
from benchmarks.records import keep
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.inputs import random_inputs

WARM_UP = 2  # kernels are loaded, and made, by the first


def time_engine(engine: rt.Engine, key: str, seeds: int = 1, repeats: int = 10) -> dict[str, Any]:
    """Milliseconds a step of a request of this layout."""
    layout = SceneLayout.from_key(key)
    engine.check_layout(layout, seeds)
    latents, moment, bound = random_inputs(engine.config, [layout, layout], seeds)
    started = time.perf_counter()
    run = engine.backend.bind(bound)
    for _ in range(WARM_UP):
        velocity = run(latents, int(moment[0]))
    first = time.perf_counter() - started
    if not torch.isfinite(velocity).all():
        raise SystemExit(f"{engine.folder}: the velocity is not finite; no times are reported")
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(latents, int(moment[0]))
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "engine": engine.folder.name,
        "layout": key,
        "seeds": seeds,
        "precision": engine.manifest.precision,
        **engine.backend.describe(),
        "bound_and_warm_ms": round(1e3 * first, 1),
        "median_ms": round(statistics.median(times), 3),
        "range_ms": [round(min(times), 3), round(max(times), 3)],
        "repeats": repeats,
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time the forward passes of an engine.")
    parser.add_argument("engine", type=Path)
    parser.add_argument("--layout", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--provider", default="auto")
    parser.add_argument("-o", "--out", type=Path)
    return parser


def main() -> None:
    given = arguments().parse_args()
    engine = rt.load(given.engine, provider=given.provider)
    facts = time_engine(engine, given.layout, given.seeds, given.repeats)
    facts["environment"] = {"built with": engine.manifest.versions}
    keep(facts, given.out)


if __name__ == "__main__":
    main()

"""Does memory grow with requests? Many of them, of changing scenes, shapes and seeds.

    python -m benchmarks.robustness.soak ENGINE -o benchmarks/results/soak.json

Resident memory is read after every ten requests, once garbage is collected and the heap trimmed;
growth is that of a straight line through the second half, and of the last over the first ten.
"""

import argparse
import ctypes
import gc
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lumosx_rt as rt
from benchmarks.records import keep
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime.engine import Engine
from lumosx_rt.runtime.memory import resident_bytes

EVERY = 10
SIZES = (rt.VideoSize(5, 32, 48), rt.VideoSize(9, 48, 32), rt.VideoSize(5, 64, 64))


def soak(engine: Engine, requests: int, steps: int, every: int = EVERY) -> dict[str, Any]:
    """Run requests and record MiB held, beside what the engine counted.

    Every fifth is refused, every seventh cancelled, every third asks for two seeds.
    """
    held, begun = [], time.perf_counter()
    for i in range(requests):
        scene = builtin_scenes()[i % 3]
        options: dict[str, Any] = {"size": SIZES[i % len(SIZES)], "steps": steps, "guidance": 3.0}
        options["seeds"] = [i, i + 1] if i % 3 == 2 else [i]
        if i % 5 == 4:
            try:
                engine.generate(replace(scene, caption=" "), **options)
            except rt.LumosXError:
                pass
        elif i % 7 == 6:
            next(engine.stream(replace(scene, caption=f"{scene.caption} {i}"), **options))
        else:
            engine.generate(replace(scene, caption=f"{scene.caption} {i}"), **options)
        if i % every == every - 1:
            held.append(settled_bytes() / 2**20)
    half = held[len(held) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)) * every, half, 1)[0]) if len(half) > 1 else 0.0
    return {
        "requests": requests,
        "steps": steps,
        "seconds": round(time.perf_counter() - begun, 1),
        "held_mib": [round(value, 2) for value in held],
        "growth_mib": round(held[-1] - held[0], 2),
        "growth_second_half_kib_per_request": round(1024 * slope, 2),
        "remembered_mib": round(engine.remembered.bytes / 2**20, 2),
        "health": engine.health.as_dict(),
    }


def settled_bytes() -> int:
    """Resident memory without garbage and without what lies free in the heap."""
    gc.collect()
    if platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engine", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    engine = rt.load(arguments.engine, provider="cpu", remember="4MiB")
    content = soak(engine, arguments.requests, arguments.steps)
    content["environment"] = engine.backend.describe()
    keep(content, arguments.out)


if __name__ == "__main__":
    main()

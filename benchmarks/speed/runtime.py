"""What the runtime's conveniences cost and gain on a CPU, and how far its memory plans are off.

    python -m benchmarks.speed.runtime ENGINE [ENGINE ...] -o benchmarks/results/runtime.json

Times are of interleaved rounds on the first engine, given as medians with the range of the rounds'
ratios: what a clock shows, and the processor's time, which other programs disturb less. Memory is
the peak of a process of its own for every case.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import lumosx_rt as rt
from benchmarks.records import keep
from lumosx_rt.artifact.source import source_of
from lumosx_rt.reference.mechanisms.lumosx.layout import layout_of
from lumosx_rt.reference.sampling.denoise import calls_of
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime.engine import Engine

SIZE = (9, 64, 144)
STEPS, SEEDS = 4, 4
REQUESTS = 6
CASES: tuple[tuple[tuple[int, int, int], int, float, float | None, Lossy], ...] = (
    ((5, 32, 48), 2, 3.0, None, EXACT),
    ((5, 240, 416), 0, 3.0, None, EXACT),
    ((5, 240, 416), 1, 3.0, None, EXACT),
    ((5, 240, 416), 2, 3.0, None, EXACT),
    ((5, 240, 416), 2, 1.0, None, EXACT),
    ((17, 240, 416), 2, 3.0, None, EXACT),
    ((17, 240, 416), 2, 3.0, 0.7, EXACT),
    ((17, 240, 416), 2, 3.0, 0.85, EXACT),
    ((5, 480, 832), 0, 3.0, None, EXACT),
    ((5, 480, 832), 0, 3.0, 0.7, EXACT),
    ((5, 480, 832), 0, 3.0, 0.85, EXACT),
    ((5, 240, 416), 2, 3.0, None, Lossy(2)),
    ((5, 240, 416), 2, 3.0, None, Lossy(1, 0.1)),
    ((17, 240, 416), 2, 3.0, None, Lossy(2, 0.1)),
)
"""Size, scene, guidance, share of the unlimited plan that is allowed, shortcuts."""


def memory_case(folder: str, index: int) -> None:
    """Run one case in this process and print what was planned and what was held at the peak."""
    size, scene, guidance, share, lossy = CASES[index]
    engine = rt.load(folder, provider="cpu", trust=True, unverified=True, lossy=lossy)
    steps = 2 if lossy else 1  # what is kept is read in the second
    options: dict[str, Any] = {"size": rt.VideoSize(*size), "steps": steps, "guidance": guidance}
    plan = engine.plan(builtin_scenes()[scene], **options)
    if share is not None:
        engine.max_memory = int(share * plan.peak_bytes)
        try:
            plan = engine.plan(builtin_scenes()[scene], **options)
        except rt.LumosXError as error:
            row = {"size": "x".join(map(str, size)), "guidance": guidance, "refused": str(error)}
            print(json.dumps(row))
            return
    engine.generate(builtin_scenes()[scene], **options)
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    (peak,) = (1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    row = {
        "size": "x".join(map(str, size)),
        "layout": layout_of(builtin_scenes()[scene], rt.VideoSize(*size).grid).key,
        "guidance": guidance,
        "lossy": str(lossy),
        "limit_mib": None if share is None else round((engine.max_memory or 0) / 2**20),
        "sequential": plan.sequential,
        "tile": plan.tile,
        "planned_mib": round(plan.peak_bytes / 2**20),
        "measured_mib": round(peak / 2**20),
        "measured_over_planned": round(peak / plan.peak_bytes, 3),
    }
    print(json.dumps(row))


def memory_rows(folders: list[Path]) -> list[dict[str, Any]]:
    rows = []
    for folder in folders:
        for index in range(len(CASES)):
            command = [
                sys.executable,
                "-m",
                "benchmarks.speed.runtime",
                str(folder),
                "--case",
                str(index),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(done.stderr.splitlines()[-1], file=sys.stderr)
                continue
            rows.append({"engine": folder.name} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    return rows


def interleaved(
    name: str, baseline: Callable[[], Any], other: Callable[[], Any], rounds: int
) -> dict[str, Any]:
    """How many times as fast `other` is; both run once beforehand."""
    clocks = {"": time.perf_counter, "cpu_": time.process_time}
    times: dict[str, list[tuple[float, float]]] = {key: [] for key in clocks}
    for i in range(rounds + 1):
        spent = []
        for run in (baseline, other):
            begun = {key: clock() for key, clock in clocks.items()}
            run()
            spent.append({key: clock() - begun[key] for key, clock in clocks.items()})
        if i:
            for key in clocks:
                times[key].append((spent[0][key], spent[1][key]))
    row: dict[str, Any] = {"what": name}
    for key, pairs in times.items():
        ratios = [a / b for a, b in pairs]
        row |= {
            f"{key}baseline_ms": round(1e3 * statistics.median(a for a, _ in pairs), 1),
            f"{key}ms": round(1e3 * statistics.median(b for _, b in pairs), 1),
            f"{key}ratio": round(statistics.median(ratios), 3),
            f"{key}ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    print(row, flush=True)
    return row


def time_rows(folder: Path, rounds: int) -> list[dict[str, Any]]:
    engine = rt.load(folder, provider="cpu")
    forgetful = rt.Engine(engine.folder, engine.manifest, engine.backend, remember=0)
    scene = builtin_scenes()[2]
    guided: dict[str, Any] = {"size": rt.VideoSize(*SIZE), "steps": STEPS, "guidance": 3.0}
    request = engine.prepare(scene, **guided)
    scenes = [replace(scene, caption=f"{scene.caption} {i}") for i in range(REQUESTS)]

    def one_by_one(engine: Engine) -> None:
        for each in scenes:
            engine.generate(each, **guided)

    def served(together: int) -> None:
        with forgetful.serve(together=together) as service:
            for future in [service.submit(each, **guided) for each in scenes]:
                future.result()

    def sampled(sequential: bool) -> None:
        from lumosx_rt.reference.sampling.denoise import denoise

        for _ in denoise(engine.backend, request, engine.config.head_dim, sequential=sequential):
            pass

    def condition(shared: bool) -> Callable[[], Any]:
        """Four seeds of one scene: a stream, or four."""
        streams, seeds = (1, SEEDS) if shared else (SEEDS, 1)
        alone = replace(request, guidance=1.0, seeds=tuple(range(seeds)))
        (inputs,) = calls_of([alone] * streams, engine.config.head_dim)
        denoise, noise = engine.backend.bind(inputs), torch.randn(inputs.shape)
        return lambda: denoise(noise, 500)

    model = source_of(engine.manifest, None).load()
    (given,) = calls_of([request], engine.config.head_dim)

    @torch.inference_mode()
    def block(pruned: bool) -> None:
        static = given.arguments()
        times, noise = torch.full(given.shape[:1], 500), torch.zeros(given.shape)
        model(noise, times, *static, keep_references=not pruned)

    *_, state = engine.sample(request)
    rows, columns = state.latents.shape[-2:]
    tile = (-(-rows // 2), -(-columns // 2))
    clip = state.latents[0]
    return [
        interleaved(
            "a scene prepared again: texts and pictures remembered",
            lambda: forgetful.prepare(scene, **guided),
            lambda: engine.prepare(scene, **guided),
            4 * rounds,
        ),
        interleaved(
            f"{REQUESTS} requests, pictures and negative prompt remembered",
            lambda: one_by_one(forgetful),
            lambda: one_by_one(engine),
            rounds,
        ),
        *(
            interleaved(
                f"{REQUESTS} requests served, up to {n} together, over one by one",
                lambda: one_by_one(forgetful),
                lambda n=n: served(n),  # type: ignore[misc]
                rounds,
            )
            for n in (1, 4)
        ),
        interleaved(
            f"{SEEDS} seeds of a scene share its references, over {SEEDS} streams",
            condition(False),
            condition(True),
            4 * rounds,
        ),
        interleaved(
            f"references left out of the last of {model.config.num_layers} blocks (PyTorch)",
            lambda: block(False),
            lambda: block(True),
            4 * rounds,
        ),
        interleaved(
            "guidance branches one after the other", lambda: sampled(False), lambda: sampled(True),
            rounds,
        ),
        interleaved(
            "decoded in four tiles", lambda: engine.vae.decode_frames_uint8(clip),
            lambda: engine.vae.decode_frames_uint8(clip, tile), rounds,
        ),
        interleaved(
            "a stream with previews", lambda: list(engine.stream(scene, previews=False, **guided)),
            lambda: list(engine.stream(scene, **guided)), rounds,
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if arguments.case is not None:
        memory_case(str(arguments.engines[0]), arguments.case)
        return
    content = {
        "times": time_rows(arguments.engines[0], arguments.rounds),
        "memory": memory_rows(arguments.engines),
        "size": SIZE,
        "steps": STEPS,
    }
    keep(content, arguments.out)


if __name__ == "__main__":
    main()

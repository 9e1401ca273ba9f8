"""Stage end_to_end: the product as a user has it: build, verify, generate, bench.

Each step is the command line in a process of its own, beside the rows; it is right where `verify`
says so. A rehearsal builds for the CPU, by onnxruntime.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.book import Row
from benchmarks.gpu.cases import Bench, Case

ROOT = Path(__file__).resolve().parents[2]
SCENE = "samples/drawn/two"


def cases(bench: Bench) -> Iterator[Case]:
    engine = str(bench.out / "engine")
    device = ["--backend", "torch", "--device", "cuda"]
    if bench.scale.rehearsal:
        device = ["--backend", "onnxruntime"]
    commands = {
        "doctor": ["doctor", "--json"],
        "build": ["build", "checkpoints/tiny", "-o", engine, *device, "--force"],
        "verify": ["verify", engine, SCENE, "--json"],
        "generate": ["generate", engine, SCENE, "-o", str(bench.out / "videos"), "--force"],
        "bench": ["bench", engine, "--list", "ci", "-o", str(bench.out / "binding"), "--json"],
    }
    for name, words in commands.items():
        yield Case(name, SCENE if name != "doctor" else "", partial(command, words))


def command(words: list[str]) -> Row:
    """Run the program; returns its seconds and what it says. Raises RuntimeError where it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lumosx_rt", *words], capture_output=True, text=True, cwd=ROOT
    )
    seconds = round(time.perf_counter() - started, 2)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"exit code {done.returncode}: {last}")
    said: Any = done.stdout.strip()[-2000:]
    if "--json" in words:
        said = json.loads(done.stdout)
    return {"command_seconds": seconds, "said": said}

"""What was measured where: one record a run, and the identity that decides what counts as done."""

import hashlib
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.sources import MODEL

ROOT = Path(__file__).parents[2]
CODE = ("kernels/*.py", "benchmarks/gpu/*.py", *MODEL)
# what two records of one environment may differ in: the code's digest says more than a commit
PASSING = ("date", "clocks", "commit")


def record(rehearsal: bool) -> dict[str, Any]:
    """GPU, driver, software and code, as far as they can be read."""
    facts: dict[str, Any] = {"rehearsal": rehearsal, "gpu": "none, interpreted"}
    if not rehearsal:
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = properties.name
        facts["sm"] = properties.major * 10 + properties.minor
        facts["memory_gib"] = round(properties.total_memory / 2**30, 1)
        facts["driver"] = _of_gpu("driver_version")
        facts["clocks"] = _of_gpu("clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit")
    return facts | {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "code": code_digest(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def identity(facts: dict[str, Any]) -> str:
    """Equal for runs whose rows may stand in one table."""
    kept = {name: value for name, value in facts.items() if name not in PASSING}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def code_digest() -> str:
    """Of the files that decide what is measured."""
    digest = hashlib.sha256()
    for file in sorted(path for pattern in CODE for path in ROOT.glob(pattern)):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def in_words(facts: dict[str, Any]) -> str:
    """For the sources of tiles: GPU, software, date."""
    return f"{facts['gpu']}, torch {facts['torch']}, triton {facts['triton']}, {facts['date']}"


def _of_gpu(asked: str) -> str | None:
    return _output("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None

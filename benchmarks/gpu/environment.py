"""What was measured where: one record a run, and the identity that decides what counts as done."""

import ast
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.sources import stamp_digest

ROOT = Path(__file__).parents[2]
# what two records of one environment may differ in: every row has the digest of its stage's code
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
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def identity(facts: dict[str, Any]) -> str:
    """Equal for runs whose rows may stand in one table."""
    kept = {name: value for name, value in facts.items() if name not in PASSING}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


@cache
def code_of(module: str) -> str:
    """Return the digest of a stage's code: its module's, and all of ours that this imports."""
    files: set[Path] = set()
    todo = [module]
    while todo:
        file = _file_of(todo.pop())
        if file is not None and file not in files:
            files.add(file)
            todo += _imported(file)
    names = sorted(str(file.relative_to(ROOT)) for file in files)
    return stamp_digest(names, ROOT)


def _file_of(module: str) -> Path | None:
    """The file of one of our modules; None for others', and for names inside a module."""
    rooms = ("reference", "kernels", "export", "calibration")
    parts = module.split(".")
    if parts[0] == "lumosx_rt" and len(parts) > 1 and parts[1] in rooms:
        parts = parts[1:]  # a link to the folder at the top
    file = ROOT.joinpath(*parts).with_suffix(".py")
    return file if parts[0] in (*rooms, "lumosx_rt", "benchmarks") and file.is_file() else None


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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

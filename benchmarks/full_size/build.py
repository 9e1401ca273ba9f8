"""Build the full-size model (1.3b, random weights) and record time, peak memory, size and parity.

python -m benchmarks.full_size.build -o benchmarks/results/full_size_build.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.records import keep


def full_size_build(folder: Path, preset: str = "1.3b") -> dict[str, Any]:
    """Build into `folder` in a process of its own; returns what is worth recording."""
    out = folder / preset
    command = [sys.executable, "-m", "lumosx_rt", "build", "--preset", preset, "--init", "random"]
    done = subprocess.run([*command, "-o", out, "--json"], stdout=subprocess.PIPE, check=True)
    facts = json.loads(done.stdout)
    return {
        "preset": preset,
        "seconds": facts["seconds"],
        "peak_memory_gib": round(facts["peak_memory_bytes"] / 2**30, 2),
        "engine_gib": round(sum(f.stat().st_size for f in out.rglob("*.*")) / 2**30, 2),
        "operators": sum(facts["operators"].values()),
        "attention_operators": facts["operators"]["Attention"],
        "parity": facts["parity"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the full-size model and record the cost.")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = full_size_build(Path(folder))
    keep(facts, arguments.out)


if __name__ == "__main__":
    main()

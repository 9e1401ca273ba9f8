"""Build the full-size plan (1.3b, random weights, sm_89) and record what it takes and holds.

    python -m benchmarks.full_size.plan -o benchmarks/results/full_size_plan.json
    python -m benchmarks.full_size.plan --precision fp8 -o full_size_plan_fp8.json

In FP8, scales are observed on noise, and there is a plan for each bucket of references.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.records import keep


def full_size_plan(
    folder: Path, preset: str, precision: str, buckets: str | None = None, target: str = "sm_89"
) -> dict[str, Any]:
    """Build into `folder` in a process of its own; returns what is worth recording."""
    out = folder / preset
    command = [sys.executable, "-m", "lumosx_rt", "build", "--preset", preset, "--init", "random"]
    command += ["--backend", "tensorrt-rtx", "--targets", target, "--precision", precision]
    command += ["--buckets", buckets] if buckets else []
    done = subprocess.run([*command, "-o", out, "--json"], stdout=subprocess.PIPE, check=True)
    facts = json.loads(done.stdout)
    return {
        "preset": preset,
        "target": target,
        "precision": precision,
        "seconds": facts["seconds"],
        "compile_seconds": facts["compile_seconds"],
        "peak_memory_gib": round(facts["peak_memory_bytes"] / 2**30, 2),
        "plan_bytes": {p.name: p.stat().st_size for p in sorted(out.rglob("*.plan"))},
        "layers": facts["layers"],
        **{name: facts[name] for name in ("buckets", "fp8") if name in facts},
        "layouts": json.loads((out / "manifest.json").read_text())["layouts"],
        "parity": facts["parity"],
        "plan_run": "not run: no GPU",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the full-size plan and record the cost.")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--preset", default="1.3b")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--buckets", help="in fp8, as of `lumosx-rt build`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = full_size_plan(
            Path(folder), arguments.preset, arguments.precision, arguments.buckets
        )
    keep(facts, arguments.out)


if __name__ == "__main__":
    main()

"""Build the full-size plan (1.3b, random weights, sm_89, bf16) and record what it takes and holds.

python benchmarks/full_size_plan.py -o benchmarks/results/full_size_plan.json
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


def full_size_plan(folder: Path, preset: str = "1.3b", target: str = "sm_89") -> dict[str, Any]:
    """Build into `folder` in a process of its own; returns what is worth recording."""
    out = folder / preset
    command = [sys.executable, "-m", "lumosx_rt", "build", "--preset", preset, "--init", "random"]
    command += ["--backend", "tensorrt-rtx", "--targets", target, "--precision", "bf16"]
    done = subprocess.run([*command, "-o", out, "--json"], stdout=subprocess.PIPE, check=True)
    facts = json.loads(done.stdout)
    return {
        "preset": preset,
        "target": target,
        "precision": "bf16",
        "seconds": facts["seconds"],
        "compile_seconds": facts["compile_seconds"],
        "peak_memory_gib": round(facts["peak_memory_bytes"] / 2**30, 2),
        "plan_bytes": (out / "transformer" / "model.plan").stat().st_size,
        "layers": facts["layers"],
        "layouts": json.loads((out / "manifest.json").read_text())["layouts"],
        "parity": facts["parity"],
        "plan_run": "not run: no GPU",
        "environment": {
            "cpus": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "machine": platform.machine(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnx", "onnxruntime", "tensorrt-rtx")},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the full-size plan and record the cost.")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = full_size_plan(Path(folder))
    text = json.dumps(facts, indent=2) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()

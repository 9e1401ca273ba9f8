"""Export the full-size model (1.3b, random weights, bf16) with opaque nodes; record what it takes.

    python -m benchmarks.full_size.plugin -o benchmarks/results/full_size_plugin.json

Time, peak memory and size of the file that the backend tensorrt is given; the onnx checker reads
it by its path. No TensorRT is needed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import keep

MOST_GIB = 20  # of memory


def full_size_plugin(folder: Path, preset: str = "1.3b") -> dict[str, Any]:
    """Export into `folder` in a process of its own; returns what is worth recording."""
    graph = folder / "model.onnx"
    command = [
        sys.executable,
        "-m",
        "benchmarks.full_size.plugin",
        "--export",
        str(graph),
        "--preset",
        preset,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    peak = facts.pop("peak_memory_bytes") / 2**30
    return {
        "preset": preset,
        "precision": "bf16",
        **facts,
        "peak_memory_gib": round(peak, 2),
        f"within_{MOST_GIB}_gib": peak <= MOST_GIB,
        "graph_bytes": graph.stat().st_size,
        "weights_bytes": graph.with_name("model.onnx.data").stat().st_size,
    }


def export(graph: Path, preset: str) -> dict[str, Any]:
    """In this process: the model, its export, the checker; with seconds and peak memory."""
    import onnx

    from lumosx_rt.artifact.source import random_transformer
    from lumosx_rt.export.onnx.opaque_nodes import export_plugin_onnx
    from lumosx_rt.export.tensorrt.variants import plugin_nodes
    from lumosx_rt.reference.backbones.config import PRESETS
    from lumosx_rt.reference.backbones.precision import recast
    from lumosx_rt.runtime.memory import peak_memory_bytes

    model = recast(random_transformer(PRESETS[preset], 0), torch.bfloat16)
    started, stages = time.monotonic(), list[str]()

    def report(stage: str) -> None:
        stages.append(f"{time.monotonic() - started:.0f} s: {stage}")
        print(stages[-1], file=sys.stderr)

    facts = export_plugin_onnx(model, graph, report=report)
    seconds = time.monotonic() - started
    report("checking the file")
    onnx.checker.check_model(str(graph))
    kinds = list(plugin_nodes(graph).values())
    return {
        "export_seconds": round(seconds, 1),
        "check_seconds": round(time.monotonic() - started - seconds, 1),
        "nodes": sum(facts["operators"].values()),
        "opaque_nodes": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "stages": stages,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Export with opaque nodes; record the cost.")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--preset", default="1.3b")
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.export:
        print(json.dumps(export(given.export, given.preset)))
        return
    with tempfile.TemporaryDirectory() as folder:
        facts = full_size_plugin(Path(folder), given.preset)
    keep(facts, given.out)


if __name__ == "__main__":
    main()

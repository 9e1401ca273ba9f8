"""onnxruntime against the eager reference on a CPU, interleaved in one run, as ratios.

    python -m benchmarks.speed.cpu_engine -o benchmarks/results/cpu_engine.json

One forward pass of both guidance branches of the `tiny` preset (random weights). Variants of the
graph: opset 23 with the Attention operator where there is no mask (what `build` makes), opset 23
with Attention everywhere and masks expanded over the queries, and opset 20 (MatMul + Softmax).
With --threads 1 times are the processor's, so that others on the machine cost nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.records import write
from benchmarks.sources import MODEL, stamp
from lumosx_rt.artifact.source import random_transformer
from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend
from lumosx_rt.bench.common.machine import load_average
from lumosx_rt.export.onnx import graph
from lumosx_rt.export.onnx.ops import export_ops, rotate_operator
from lumosx_rt.reference.backbones.config import PRESETS
from lumosx_rt.reference.backbones.ops import Ops, cross_attention, qk_norm_rope, self_attention
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import Backend, random_inputs

ROOT = Path(__file__).resolve().parents[2]

LAYOUTS = (("5x8x18+0+-", 1), ("5x8x18+2+3.3", 1), ("5x8x18+2+3.3", 4), ("5x8x18+4+4.4.4", 1))
BASELINE = "eager reference"
SOURCES = (
    *MODEL,
    *(
        "export/onnx/ops.py",
        "export/program.py",
        "export/onnx/graph.py",
        "benchmarks/speed/cpu_engine.py",
    ),
    *(f"lumosx_rt/backends/{name}/run.py" for name in ("eager", "onnxruntime")),
)


def attend_everywhere(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    heads = q.shape[2]
    if mask is not None:
        mask = mask.expand(q.shape[0], 1 if mask.shape[1] == 1 else heads, q.shape[1], k.shape[1])
    out, *_ = torch.onnx.ops.attention(
        q.flatten(2), k.flatten(2), v.flatten(2), mask, q_num_heads=heads, kv_num_heads=heads
    )
    return out.unflatten(-1, (heads, -1))


def masked_operator_ops(opset: int) -> Ops:
    return Ops(
        self_attention=partial(self_attention, attend=attend_everywhere),
        cross_attention=partial(cross_attention, attend=attend_everywhere),
        qk_norm_rope=partial(qk_norm_rope, rotate=rotate_operator),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = random_transformer(PRESETS["tiny"], 0)
    with tempfile.TemporaryDirectory() as folder:
        backends: dict[str, Backend] = {BASELINE: EagerBackend(model)}
        for name, opset, ops in (
            ("onnxruntime, opset 23", 23, export_ops),
            ("onnxruntime, opset 23, masks expanded", 23, masked_operator_ops),
            ("onnxruntime, opset 20", 20, export_ops),
        ):
            path = Path(folder, f"{len(backends)}.onnx")
            with mock.patch.object(graph, "export_ops", ops):
                graph.export_onnx(model, path, opset=opset)
            backends[name] = OnnxRuntimeBackend(path, "cpu", threads=torch.get_num_threads())
        rows = [row for key, seeds in LAYOUTS for row in measure(backends, key, seeds, arguments)]
    for row in rows:
        if "refused" in row:
            print(f"{row['layout']:>15} x{row['seeds']}  {row['backend']:<40} {row['refused']}")
            continue
        low, high = row["ratio_range"]
        print(
            f"{row['layout']:>15} x{row['seeds']}  {row['backend']:<40} {row['median_ms']:8.1f} ms"
            f"  x{row['ratio']:.2f} ({low:.2f}-{high:.2f})  error {row['relative_error']:.1e}"
        )
    if arguments.out:
        content = {
            "environment": {"load_average": load_average()},
            "times": "processor" if arguments.threads == 1 else "wall",
            "repeats": arguments.repeats,
            "stamp": stamp(SOURCES),
            "rows": rows,
        }
        write(content, arguments.out)


def measure(
    backends: dict[str, Backend], key: str, seeds: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of one layout; ratios are of each round's times, so that drift cancels."""
    layout = SceneLayout.from_key(key)
    latents, _, inputs = random_inputs(PRESETS["tiny"], [layout, layout], seeds)
    runs: dict[str, Callable[[], Tensor]] = {
        name: partial(backend.bind(inputs), latents, 500) for name, backend in backends.items()
    }
    outputs, refused = {}, {}
    for name, run in runs.items():  # also warms up
        try:
            outputs[name] = run().clone()
        except LumosXError as error:
            refused[name] = str(error).rsplit("was false. ", 1)[-1]
    runs = {name: runs[name] for name in outputs}
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(1e3 * (clock() - start))
    rows: list[dict[str, Any]] = [
        {"layout": key, "seeds": seeds, "backend": name, "refused": reason}
        for name, reason in refused.items()
    ]
    for name in runs:
        ratios = [base / own for base, own in zip(times[BASELINE], times[name], strict=True)]
        rows.append(
            {
                "layout": key,
                "seeds": seeds,
                "backend": name,
                "median_ms": round(statistics.median(times[name]), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "relative_error": relative_error(outputs[name], outputs[BASELINE]),
            }
        )
    return rows


if __name__ == "__main__":
    main()

"""The speed suite on the shipped tiny checkpoint: benchmarks/results/latency.json and .png.

    python -m benchmarks.speed.latency [--quick]

Builds and verifies its engine in out/latency where that was not done, then does what
`lumosx-rt bench out/latency/engine --suite speed` does, on one thread in the processor's time, so
that others on the machine cost nothing. Goes on where it was cut off.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import lumosx_rt as rt
from benchmarks.records import write
from benchmarks.sources import MODEL, stamp
from lumosx_rt.bench.common.machine import code_digest, machine
from lumosx_rt.bench.speed.command import PAGE_FILE, bench_speed, not_verified, told
from lumosx_rt.bench.speed.measure import QUICK, Extent
from lumosx_rt.parity.verify import verify
from lumosx_rt.reference.scenes.builtin import builtin_scenes

ROOT = Path(__file__).resolve().parents[2]

CHECKPOINT = ROOT / "checkpoints" / "tiny"
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = (
    *MODEL,
    "reference/sampling/flow.py",
    *(
        "reference/encoders/umt5.py",
        "reference/encoders/tiled_decode.py",
        "reference/mechanisms/lumosx/binding.py",
    ),
    *("export/onnx/ops.py", "export/program.py", "export/onnx/graph.py"),
    *(
        "lumosx_rt/runtime/engine.py",
        "lumosx_rt/runtime/service.py",
        "reference/sampling/denoise.py",
    ),
    *("lumosx_rt/backends/onnxruntime/run.py", "lumosx_rt/bench/speed/measure.py"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS / "latency.json")
    given = parser.parse_args()
    os.chdir(ROOT)
    if hasattr(os, "sched_setaffinity"):  # onnxruntime takes all cores that it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    torch.set_num_threads(1)
    base = Path("out", "latency")
    engine = base / "engine"
    try:
        rt.build(CHECKPOINT, engine, report=_say)
    except rt.LumosXError:  # of other inputs: the engine of an older version
        rt.build(CHECKPOINT, engine, report=_say, force=True)
    if not_verified(engine):
        _say("verifying the engine")
        verify(
            rt.load(engine, provider="cpu", unverified=True),
            builtin_scenes(),
            checkpoint=CHECKPOINT,
        )
    key = json.dumps([machine(), code_digest(), given.quick], sort_keys=True)
    summary = bench_speed(
        engine,
        base / hashlib.sha256(key.encode()).hexdigest()[:16],
        extent=QUICK if given.quick else Extent(),
        provider="cpu",
        processor_time=True,
        report=_say,
        progress=_progress,
    )
    print(told(summary))
    shutil.copyfile(Path(summary["folder"], PAGE_FILE), given.out.with_suffix(".png"))
    record = {**summary, "engine": "engine of checkpoints/tiny", "stamp": stamp(SOURCES)}
    del record["folder"]
    write(record, given.out)
    return 0


def _progress(
    part: str, done: int, total: int, metrics: Mapping[str, float] | None = None, /
) -> None:
    _say(f"{done} of {total}: {part}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

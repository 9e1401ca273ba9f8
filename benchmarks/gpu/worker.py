"""Runs the cases of stages one after the other, in a process that may be lost.

A GPU fault ends a process for good, and some kernels never return. Before a case runs, its name is
left in running.json; whoever supervises finds it there and starts the next process.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton

from benchmarks.gpu import (
    attention,
    correctness,
    cross,
    environment,
    forward,
    gemm,
    rows,
    sweep,
)
from benchmarks.gpu.book import NAME, RUNNING, Book, Row, read, table, write
from benchmarks.gpu.cases import Bench, Case
from benchmarks.gpu.scale import full, rehearsal
from benchmarks.gpu.supervise import AGAIN

STAGES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "a": correctness.cases,
    "b": attention.cases,
    "c": cross.cases,
    "d": rows.cases,
    "e": gemm.cases,
    "f": forward.cases,
    "g": sweep.cases,
}
TILED = set("abcdf")  # stages whose rows depend on tiles.json


def work(stages: list[str], out: Path, rehearse: bool, deadline: float, since: float) -> int:
    """Measure what is missing until the deadline (seconds of the epoch); an exit status.

    Raises ValueError without a GPU, or where `out` holds rows of the other kind.
    """
    if not rehearse and not torch.cuda.is_available():
        raise ValueError("there is no GPU; --rehearse does everything small on a CPU")
    torch.set_grad_enabled(False)
    facts = environment.record(rehearse)
    book = Book(out, environment.identity(facts), rehearse, since)
    if not any(
        row["stage"] == "environment" and row["environment"] == book.environment
        for row in read(out / NAME)
    ):
        write(out / NAME, {"stage": "environment", "environment": book.environment} | facts)
    scale = rehearsal() if rehearse else full()
    if not rehearse:
        triton.set_allocator(
            lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda")
        )
    words = environment.in_words(facts)
    bench = Bench(scale, words, out, lambda stage: list(book.rows(stage).values()))
    for stage in stages:
        tiles = sweep.tiles_digest() if stage in TILED else ""
        missing, wanted = [], []
        for case in STAGES[stage](bench):
            key = (case.name, case.shape, tiles)
            wanted.append(key)
            if key in book.rows(stage):
                continue
            if time.time() > deadline:
                missing.append(case)
                continue
            note = {"stage": stage, "name": case.name, "shape": case.shape, "tiles": tiles}
            (out / RUNNING).write_text(json.dumps(note | {"environment": book.environment}))
            book.append(**note, found=_attempt(case, bench))
            (out / RUNNING).unlink()
            if not _alive(scale.device):
                return AGAIN
        bench.latest.forget()
        found = book.rows(stage)
        print(f"\n-- stage {stage}, {bench.gpu}{', REHEARSAL' * rehearse}")
        print(table([found[key] for key in wanted if key in found]))
        for case in missing:
            print(f"missing, out of time: {case.name} {case.shape}")
        print(end="", flush=True)
    return 0


def _attempt(case: Case, bench: Bench) -> Row:
    """The case's figures, or why there are none."""
    start = time.perf_counter()
    full_memory = False
    try:
        found = case.run()
    except Exception as error:  # whatever it is, it is a result
        found = {"failed": f"{type(error).__name__}: {error}"[:500]}
        full_memory = isinstance(error, torch.OutOfMemoryError)
    if full_memory:  # outside, where the traceback no longer holds tensors
        bench.latest.forget()
    return found | {"seconds": round(time.perf_counter() - start, 2)}


def _alive(device: torch.device) -> bool:
    if device.type == "cpu":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True

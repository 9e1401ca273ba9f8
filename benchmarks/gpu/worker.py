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
    encoders,
    end_to_end,
    environment,
    forward,
    machine,
    packages,
    products,
    rows,
    sweep,
)
from benchmarks.gpu.book import NAME, RUNNING, Book, Row, read, table, write
from benchmarks.gpu.cases import Bench, Case
from benchmarks.gpu.scale import full, rehearsal
from benchmarks.gpu.supervise import AGAIN
from lumosx_rt.kernels import tiles as tiles_here

STAGES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "machine": machine.cases,
    "correctness": correctness.cases,
    "first_forward": forward.first,
    "small_package": packages.small,
    "attention": attention.cases,
    "cross": cross.cases,
    "forward": forward.cases,
    "encoders": encoders.cases,
    "end_to_end": end_to_end.cases,
    "full_package": packages.whole,
    "products": products.cases,
    "rows": rows.cases,
    "tiles": sweep.cases,
}
UNTILED = {"machine", "encoders", "products", "tiles"}  # no row of theirs depends on tiles.json


def code_of(stage: str) -> str:
    """Return the digest of what decides a stage's rows."""
    return environment.code_of(STAGES[stage].__module__)


def work(stages: list[str], out: Path, rehearse: bool, deadline: float, since: float) -> int:
    """Measure what is missing until the deadline (seconds of the epoch); an exit status.

    Raises ValueError without a GPU, or where `out` holds rows of the other kind.
    """
    if not rehearse and not torch.cuda.is_available():
        raise ValueError("there is no GPU; --rehearse does everything small on a CPU")
    torch.set_grad_enabled(False)
    facts = environment.record(rehearse)
    # what a GPU that launches nothing took is no measurement, whatever its size
    rehearsed = rehearse or str(facts["gpu"]).startswith("null GPU")
    facts["rehearsal"] = rehearsed
    book = Book(out, environment.identity(facts), rehearsed, since, code_of)
    if not rehearse and (out / tiles_here.FILE.name).exists():
        tiles_here.read_from(out / tiles_here.FILE.name)  # winners of an earlier call
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
        tiles = "" if stage in UNTILED else sweep.tiles_digest()
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
            about: Row = {"environment": book.environment, "code": code_of(stage)}
            about |= {"rehearsal": True} if rehearsed else {}
            (out / RUNNING).write_text(json.dumps(note | about))
            book.append(**note, found=_attempt(case, bench))
            (out / RUNNING).unlink()
            if not _alive(scale.device):
                return AGAIN
        bench.latest.forget()
        found = book.rows(stage)
        print(f"\n-- stage {stage}, {bench.gpu}{', REHEARSAL' * rehearsed}")
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

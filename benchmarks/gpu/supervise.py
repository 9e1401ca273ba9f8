"""Keeps a worker going: a lost process, or a kernel that never returns, costs one row."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.book import NAME, RUNNING, Row, write

AGAIN = 75  # a worker's exit status: the device is lost, another process may go on
GRACE_S = 45.0  # for the row that is running at a stage's deadline
LOOK_S = 0.2


def supervise(
    command: list[str], out: Path, deadline: float, row_limit_s: float, rehearsal: bool = False
) -> int:
    """Run a worker, and another for what is left where it was lost; an exit status.

    deadline: seconds of the epoch; the row that runs then may finish within GRACE_S.
    """
    running = out / RUNNING
    while True:
        running.unlink(missing_ok=True)
        worker = subprocess.Popen(command)
        try:
            reason = _watch(worker, running, deadline, row_limit_s)
        finally:
            worker.kill()  # whoever ends the supervisor ends the worker
            worker.wait()
        note = _read(running)
        if note is None and worker.returncode != AGAIN:
            return worker.returncode  # finished, or cannot even start
        if note is not None and reason:
            row: Row = note | {"failed": reason, "time": round(time.time(), 1)}
            write(out / NAME, row | ({"rehearsal": True} if rehearsal else {}))


def _watch(
    worker: "subprocess.Popen[bytes]", running: Path, deadline: float, limit_s: float
) -> str:
    """Wait for a worker, or end it; says why a row it leaves behind has failed, if it has."""
    while worker.poll() is None:
        time.sleep(LOOK_S)
        late = time.time() > deadline + GRACE_S
        slow = time.time() - _started(running) > limit_s
        if late or slow:
            worker.kill()
            return f"did not return within {limit_s:g} s" if slow else ""
    return f"its process ended with status {worker.returncode}"


def _started(running: Path) -> float:
    """When the running row began; now, if none is."""
    try:
        return running.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _read(running: Path) -> dict[str, Any] | None:
    try:
        note: dict[str, Any] = json.loads(running.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return note

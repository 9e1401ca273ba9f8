"""Keeps a worker going: a lost process, or a kernel that never returns, costs one row."""

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.book import NAME, RUNNING, write

AGAIN = 75  # a worker's exit status: the device is lost, another process may go on
STUCK = 76  # of a supervisor whose worker cannot be ended: the driver holds it
GRACE_S = 45.0  # for the row that is running at a stage's deadline
LOOK_S = 0.2
DYING_S = 20.0  # for a process that is ended; one in the driver may never


def supervise(
    command: list[str],
    out: Path,
    deadline: float,
    row_limits_s: Mapping[str, float],
) -> int:
    """Run a worker, and another for what is left where it was lost; an exit status.

    deadline: seconds of the epoch; the row that runs then may finish within GRACE_S. row_limits_s:
    of a row of each stage. A worker that cannot be ended is left where it is, with its row.
    """
    running = out / RUNNING
    while True:
        running.unlink(missing_ok=True)
        worker = subprocess.Popen(command)
        try:
            reason = _watch(worker, running, deadline, row_limits_s)
        finally:
            ended = _ended(worker)  # whoever ends the supervisor ends the worker
        note = _read(running)
        if not ended:
            reason = f"{reason}; its process could not be ended within {DYING_S:g} s"
            if note is not None:
                failed = {"failed": reason.strip("; "), "time": round(time.time(), 1)}
                write(out / NAME, note | failed)
            return STUCK
        if note is None and worker.returncode != AGAIN:
            return worker.returncode  # finished, or cannot even start
        if note is not None and reason:
            write(out / NAME, note | {"failed": reason, "time": round(time.time(), 1)})


def _ended(worker: "subprocess.Popen[bytes]") -> bool:
    """End a worker; False where it does not end."""
    worker.kill()
    try:
        worker.wait(timeout=DYING_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _watch(
    worker: "subprocess.Popen[bytes]",
    running: Path,
    deadline: float,
    limits_s: Mapping[str, float],
) -> str:
    """Wait for a worker, or end it; says why a row it leaves behind has failed, if it has."""
    while worker.poll() is None:
        time.sleep(LOOK_S)
        late = time.time() > deadline + GRACE_S
        note = _read(running) or {}
        limit_s = limits_s.get(str(note.get("stage")), max(limits_s.values()))
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

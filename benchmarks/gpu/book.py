"""rows.jsonl: a line for every row, appended at once; what stands there is not measured again."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
NAME, RUNNING = "rows.jsonl", "running.json"


class Book:
    """The rows of one environment in a folder.

    code: of a stage, the digest of what decides its rows; others are of older code. since: rows
    written earlier (seconds of the epoch) count as not there. Raises ValueError where the folder
    has rows of the other kind, measured or rehearsed.
    """

    def __init__(
        self,
        folder: Path,
        environment: str,
        rehearsal: bool,
        since: float = 0.0,
        code: Callable[[str], str] = lambda stage: "",
    ) -> None:
        self.folder, self.environment, self.since, self.code = folder, environment, since, code
        self.rehearsal = rehearsal
        folder.mkdir(parents=True, exist_ok=True)
        if any(bool(row.get("rehearsal")) != rehearsal for row in read(folder / NAME)):
            kind = "measured" if rehearsal else "rehearsed"
            raise ValueError(f"{folder} has {kind} rows; the two are not mixed, name another --out")

    def rows(self, stage: str) -> dict[tuple[str, str, str], Row]:
        """Rows of a stage by (name, shape, tiles); the last of each counts."""
        return {
            (row["name"], row["shape"], row["tiles"]): row
            for row in read(self.folder / NAME)
            if row["environment"] == self.environment
            and row["stage"] == stage
            and row.get("code") == self.code(stage)
            and row["time"] >= self.since
        }

    def append(self, stage: str, name: str, shape: str, tiles: str, found: Row) -> Row:
        row: Row = {"stage": stage, "name": name, "shape": shape, "tiles": tiles} | found
        row |= {"environment": self.environment, "code": self.code(stage)}
        row["time"] = round(time.time(), 1)
        if self.rehearsal:
            row["rehearsal"] = True
        write(self.folder / NAME, row)
        return row


def read(file: Path) -> Iterator[Row]:
    """Rows of a file; the torn last line of a killed run is passed over."""
    if not file.exists():
        return
    for line in file.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def write(file: Path, row: Row) -> None:
    """Append one line; after a torn one, on a line of its own."""
    torn = file.exists() and file.read_bytes()[-1:] not in (b"\n", b"")
    with file.open("a", encoding="utf-8") as out:
        out.write("\n" * torn + json.dumps(row) + "\n")


def table(rows: list[Row]) -> str:
    """A stage's rows in short."""
    lines = []
    for row in rows:
        if "failed" in row:
            figures = f"failed: {row['failed'].splitlines()[0][:110]}"
        else:
            figures = "  ".join(part for part in _figures(row) if part)
        lines.append(f"{row['name'][:58]:<58} {row['shape'][:38]:<38} {figures}")
    return "\n".join(lines)


def _figures(row: Row) -> Iterator[str]:
    if "ms" in row:
        yield "/".join(f"{ms:.3f}" for ms in row["ms"]) + " ms"
    for name, unit in (("tflops", "TFLOP/s"), ("tbps", "TB/s")):
        if name in row:
            yield f"{row[name]:.4g} {unit} ({row['roofline_share']:.0%})"
    if "error" in row:
        yield f"error {row['error']:.1e}"
    if "ratio" in row:
        yield f"x{row['ratio']:.2f}"
    if "pass" in row:
        yield "pass" if row["pass"] else "FAIL"
    if "peak_gib" in row:
        yield f"{row['peak_gib']} GiB"
    for kernel in row.get("kernels", []):
        yield f"\n    {kernel['ms']:10.3f} ms {kernel['calls']:5d}x {kernel['kernel']}"
    if "entry" in row:
        yield json.dumps(row["entry"])

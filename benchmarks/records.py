"""What a measuring script leaves: a record, and the machine that it was made on."""

import json
from pathlib import Path
from typing import Any

import psutil

from lumosx_rt.bench.common.machine import machine
from lumosx_rt.reference.files import write_atomically


def keep(record: dict[str, Any], out: Path | None) -> None:
    """Print a record as JSON, and write it where a file is asked for; adds "environment"."""
    print(_text(record), end="")
    if out is not None:
        write(record, out)


def write(record: dict[str, Any], out: Path) -> None:
    """Write a record as JSON; adds "environment"."""
    write_atomically(out, _text(record))


def _text(record: dict[str, Any]) -> str:
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    environment = machine() | {"memory_gib": memory} | record.get("environment", {})
    return json.dumps(record | {"environment": environment}, indent=1, allow_nan=False) + "\n"

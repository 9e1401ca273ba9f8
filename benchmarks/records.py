"""What a measuring script leaves: a record, and the machine that it was made on."""

import json
from pathlib import Path
from typing import Any

import psutil

from lumosx_rt.bench.common.machine import machine
from lumosx_rt.reference.files import write_atomically


def keep(record: dict[str, Any], out: Path | None) -> None:
    """Print a record as JSON, and write it where a file is asked for; adds "environment"."""
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    environment = machine() | {"memory_gib": memory} | record.get("environment", {})
    text = json.dumps(record | {"environment": environment}, indent=1, allow_nan=False) + "\n"
    print(text, end="")
    if out is not None:
        write_atomically(out, text)

"""What won a sweep, in tiles.json beside the rows: what is measured later uses it."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import Bench
from lumosx_rt.kernels import tiles


def write(bench: Bench, key: str, entry: dict[str, Any]) -> None:
    """Put an entry of this GPU's architecture into the run's own table.

    A rehearsal's is the table of sm_90 with what it tried, and nobody reads it.
    """
    file = bench.out / tiles.FILE.name
    sm = 90
    if not bench.scale.rehearsal:
        sm = tiles.architecture(torch.cuda.get_device_capability(bench.scale.device))
    table = json.loads((file if file.exists() else tiles.FILE).read_text("utf-8"))
    table[f"sm_{sm}"][key] = entry
    write_table(file, table)
    if not bench.scale.rehearsal:
        tiles.read_from(file)


def write_table(file: Path, table: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Write a table of tiles, an entry a line, whole or not at all."""
    new = file.with_suffix(".new")
    parts = []
    for name, entries in table.items():
        lines = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(entries.items())]
        parts.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    new.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")
    new.replace(file)

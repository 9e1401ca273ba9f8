"""What won a sweep, written where kernels look it up, and beside the rows."""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import Bench
from lumosx_rt.kernels import tiles


def write(bench: Bench, key: str, entry: dict[str, Any]) -> None:
    """Put an entry of this GPU's architecture into tiles.json.

    A copy is beside the rows, for runs on a machine that is given back; a rehearsal writes that
    copy only.
    """
    copy = bench.out / tiles.FILE.name
    if bench.scale.rehearsal:
        _put(copy, "sm_90", key, entry)
        return
    sm = tiles.architecture(torch.cuda.get_device_capability(bench.scale.device))
    _put(tiles.FILE, f"sm_{sm}", key, entry)
    copy.write_bytes(tiles.FILE.read_bytes())


def _put(file: Path, architecture: str, key: str, entry: dict[str, Any]) -> None:
    table = json.loads(file.read_text("utf-8")) if file.exists() else {}
    table.setdefault(architecture, {})[key] = entry
    new = file.with_suffix(".new")
    parts = []
    for name, entries in table.items():
        lines = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(entries.items())]
        parts.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    new.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")
    new.replace(file)

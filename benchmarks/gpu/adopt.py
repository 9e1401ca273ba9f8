"""Put what won a sweep where kernels look it up: tiles.json of a run into kernels/tiles.json.

    python -m benchmarks.gpu.adopt FOLDER

Only entries that were measured are taken; each is named.
"""

import json
import sys
from pathlib import Path

from benchmarks.gpu.winners import write_table
from lumosx_rt.kernels import tiles


def adopt(folder: Path, into: Path = tiles.FILE) -> list[str]:
    """Merge a run's winners into a file of tiles; returns the names of entries that changed.

    Raises ValueError where the run was a rehearsal.
    """
    found = json.loads((folder / tiles.FILE.name).read_text("utf-8"))
    table = json.loads(into.read_text("utf-8"))
    changed = []
    for architecture, entries in found.items():
        for key, entry in entries.items():
            if table.setdefault(architecture, {}).get(key) == entry:
                continue
            if "interpreted" in entry["source"]:
                raise ValueError(f"{folder}: {key} was rehearsed, not measured")
            if entry["source"].startswith("measured"):
                table[architecture][key] = entry
                changed.append(f"{architecture} {key}")
    write_table(into, table)
    return changed


def main() -> int:
    if len(sys.argv) != 2:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        changed = adopt(Path(sys.argv[1]))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(changed) or "nothing was measured to be faster")
    return 0


if __name__ == "__main__":
    sys.exit(main())

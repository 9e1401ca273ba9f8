"""Size and sampling of a video where a request is silent.

The released settings, unless a bundle has a `defaults.json` with its own: a JSON object with any of
frames, height, width (pixels), fps, steps, shift and guidance; and `trained_for`, a line that says
what the checkpoint knows where that is not the world, for notes to people.
"""

import os
from pathlib import Path
from typing import Any

from lumosx_rt.reference.errors import BadInput, listing
from lumosx_rt.reference.files import read_json

DEFAULTS_FILE, TRAINED_FOR = "defaults.json", "trained_for"
KINDS: dict[str, type] = {
    "frames": int, "height": int, "width": int, "fps": int,
    "steps": int, "shift": float, "guidance": float,
}  # fmt: skip
RELEASED: dict[str, Any] = {
    "frames": 81, "height": 480, "width": 832, "fps": 16, "steps": 50, "shift": 8.0, "guidance": 6.0
}  # fmt: skip
SMALL = RELEASED | {"frames": 17, "height": 128, "width": 288, "steps": 20}
"""For random weights of the tiny preset."""


def read_defaults(root: Path) -> dict[str, Any]:
    """Return the defaults of the bundle at `root`. Raises LumosXError for a file that says
    nonsense."""
    file = root / DEFAULTS_FILE if root.is_dir() else root
    if file.name != DEFAULTS_FILE or not os.path.lexists(file):
        return RELEASED
    found = read_json(file)
    problems = [f"{name!r} is not known" for name in found if name not in (*KINDS, TRAINED_FOR)]
    problems += default_problems(RELEASED | found)
    if problems:
        raise BadInput(listing(str(file), problems))
    return RELEASED | found


def default_problems(values: dict[str, Any]) -> list[str]:
    """List what is missing in, or wrong with, a table of defaults."""
    told = values.get(TRAINED_FOR, "")
    wrong = not isinstance(told, str) or len(told) > 200 or not told.isprintable()
    return [f"{TRAINED_FOR!r} must be a line of at most 200 characters"] * wrong + [
        f"{name!r} must be a positive {kind.__name__}"
        for name, kind in KINDS.items()
        if type(values.get(name)) not in ((int,) if kind is int else (int, float))
        or not values[name] > 0
    ]

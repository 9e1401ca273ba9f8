"""Of which code a figure is: a digest of the files it depends on, and the commit they were at."""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = (
    *(f"reference/backbones/{name}.py" for name in ("config", "ops", "wan")),
    *(f"reference/mechanisms/lumosx/{name}.py" for name in ("layout", "structure")),
)
"""What the transformer is made of."""


def stamp(files: Sequence[str], root: Path = ROOT) -> dict[str, Any]:
    """{"commit", "digest", "files"}; the commit ends in + where these files were not committed.

    files: paths from the root, patterns allowed. Raises ValueError for one that is not there.
    """
    names = sorted({name for pattern in files for name in _matching(pattern, root)})
    return {"commit": _commit(names, root), "digest": _digest(names, root), "files": list(files)}


def has_changed(found: dict[str, Any], root: Path = ROOT) -> bool:
    """Whether the files of a stamp are others today, or gone."""
    try:
        return stamp_digest(found["files"], root) != found["digest"]
    except ValueError:
        return True


def stamp_digest(files: Sequence[str], root: Path = ROOT) -> str:
    return _digest(sorted({name for pattern in files for name in _matching(pattern, root)}), root)


def _digest(names: Sequence[str], root: Path) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    return digest.hexdigest()[:12]


def _matching(pattern: str, root: Path) -> list[str]:
    found = [str(path.relative_to(root)) for path in root.glob(pattern) if path.is_file()]
    if not found:
        raise ValueError(f"{pattern}: no such file in {root}")
    return found


def _commit(names: Sequence[str], root: Path) -> str:
    head = _git(root, "rev-parse", "--short=7", "HEAD")
    if not head:
        return "unknown"
    return head + "+" * bool(_git(root, "status", "--porcelain", "--", *names))


def _git(root: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

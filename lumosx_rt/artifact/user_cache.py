"""The user cache: where content with a given hash was last seen, hashes of unchanged files, which
code was compiled here, and what TensorRT-RTX compiles of a plan when it runs.

It never holds the weights themselves; losing it costs time, not results.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from lumosx_rt.reference.checkpoints.bundle import Bundle, Component, find_bundle
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import write_atomically


def cache_dir() -> Path:
    """LUMOSX_CACHE, else XDG_CACHE_HOME/lumosx-rt, else ~/.cache/lumosx-rt."""
    if own := os.environ.get("LUMOSX_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lumosx-rt"


def content_hash(part: Component) -> str:
    """Return the part's sha256; not computed again while its files keep size and time."""
    stamp = {
        str(f.absolute()): [f.stat().st_size, f.stat().st_mtime_ns, f.stat().st_ctime_ns]
        for f in (*part.files, *([part.config] if part.config else []))
    }
    name = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()
    note = cache_dir() / "hashes" / f"{name}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(note.read_text())["sha256"])
    digest = part.sha256
    _write(note, {"sha256": digest})
    return digest


def remember(bundle: Bundle, hashes: dict[str, str]) -> None:
    """Note where the bundle's parts lie, so that engines built from it find them again."""
    for digest in hashes.values():
        _write(cache_dir() / "bundles" / f"{digest}.json", {"root": str(bundle.root.absolute())})


def recall(digest: str) -> Bundle | None:
    """Return the bundle that held a part with this hash, if it is still where it was."""
    with suppress(OSError, ValueError, KeyError, TypeError, LumosXError):
        note = json.loads((cache_dir() / "bundles" / f"{digest}.json").read_text())
        return find_bundle(note["root"])
    return None


def kernels_of(digest: str) -> Path:
    """Return where TensorRT-RTX keeps the kernels it compiled for the plan with this hash."""
    return cache_dir() / "kernels" / f"{digest}.bin"


def note_compiled(digest: str) -> None:
    """Note that the package or plan with this hash was compiled here, by this user."""
    _write(_compiled(digest), {"sha256": digest})


def compiled_here(digest: str) -> bool:
    """Tell whether the package or plan with this hash was compiled here, by this user."""
    return _compiled(digest).is_file()


def _compiled(digest: str) -> Path:
    return cache_dir() / "compiled" / f"{digest}.json"


def _write(path: Path, note: dict[str, object]) -> None:
    with suppress(OSError):  # a read-only home costs a second hashing, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(note))

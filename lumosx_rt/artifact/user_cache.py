"""The user cache: where content with a given hash was last seen, hashes of unchanged files, which
code was compiled here, and what TensorRT-RTX compiles of a plan when it runs.

It never holds the weights themselves; losing it costs time, not results. Where there is no place
for one, this process has one of its own.
"""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lumosx_rt.reference.checkpoints.bundle import Bundle, Component, find_bundle
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import read_json, write_atomically

PLACES = 8  # that are remembered for a hash
_NOTE_BYTES = 1 << 16


def cache_dir() -> Path:
    """LUMOSX_CACHE, else XDG_CACHE_HOME/lumosx-rt, else ~/.cache/lumosx-rt."""
    if own := os.environ.get("LUMOSX_CACHE"):
        return _absolute(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return _absolute(shared) / "lumosx-rt"
    try:
        return Path.home() / ".cache" / "lumosx-rt"
    except RuntimeError:  # an unknown user without HOME
        return _own_place()


@cache
def _absolute(path: str) -> Path:
    """Remember what a relative path meant when it was first used."""
    return Path(path).absolute()


@cache
def _own_place() -> Path:
    """Make a folder for this process alone: in a shared one, others could vouch for code."""
    folder = tempfile.mkdtemp(prefix="lumosx-rt-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def content_hash(part: Component) -> str:
    """Return the part's sha256; not computed again while its files keep size and time."""
    stamp = {
        str(f.absolute()): [f.stat().st_size, f.stat().st_mtime_ns, f.stat().st_ctime_ns]
        for f in (*part.files, *([part.config] if part.config else []))
    }
    name = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()
    known = _read("hashes", name).get("sha256")
    if isinstance(known, str):
        return known
    digest = part.sha256
    _write("hashes", name, {"sha256": digest})
    return digest


def remember(bundle: Bundle, hashes: dict[str, str]) -> None:
    """Note where the bundle's parts lie, so that engines built from it find them again."""
    here = str(bundle.root.absolute())
    for digest in hashes.values():
        others = [root for root in _roots(digest) if root != here]
        _write("bundles", digest, {"roots": [here, *others][:PLACES]})


def places(digest: str) -> Iterator[Bundle]:
    """Yield the bundles that held a part with this hash and are still there, the last one first."""
    for root in _roots(digest):
        with suppress(OSError, ValueError, LumosXError):
            yield find_bundle(root)


def recall(digest: str) -> Bundle | None:
    """Return the bundle that held a part with this hash, if it is still where it was."""
    return next(places(digest), None)


def _roots(digest: str) -> list[str]:
    note = _read("bundles", digest)
    found = note.get("roots", [note.get("root")])  # one place alone, as earlier versions noted
    return [root for root in found if isinstance(root, str)] if isinstance(found, list) else []


def kernels_of(digest: str) -> Path:
    """Return where TensorRT-RTX keeps the kernels it compiled for the plan with this hash."""
    return cache_dir() / "kernels" / f"{digest}.bin"


def note_compiled(digest: str) -> None:
    """Note that the package or plan with this hash was compiled here, by this user."""
    _write("compiled", digest, {"sha256": digest})


def compiled_here(digest: str) -> bool:
    """Tell whether the package or plan with this hash was compiled here, by this user."""
    return bool(_read("compiled", digest))


def _read(kind: str, name: str) -> dict[str, Any]:
    """Return a note; empty where there is none, or none that can be read."""
    try:
        return read_json(cache_dir() / kind / f"{name}.json", _NOTE_BYTES)
    except (LumosXError, OSError):
        return {}


def _write(kind: str, name: str, note: dict[str, object]) -> None:
    with suppress(OSError):  # a read-only home costs a second hashing, nothing else
        path = cache_dir() / kind / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(note))

"""Files: written whole or not at all, read under limits, hashed."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lumosx_rt.reference.errors import LumosXError

_JSON_LIMIT_BYTES = 1 << 27
_TEXT_LIMIT_BYTES = 1 << 20
_OF_THE_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx"}


def of_the_system(name: str) -> bool:
    """Tell whether a file or folder is hidden, or one that systems put beside others' files."""
    return name.startswith((".", "~$")) or name.lower() in _OF_THE_SYSTEM


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, which takes its place once the block has finished.

    Content and rename are on the disk when this returns. Whatever goes wrong, `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_regular(path: str | os.PathLike[str], max_bytes: int, what: str) -> BinaryIO:
    """Open a regular file of at most `max_bytes`; `what` names it in messages.

    A pipe or a device is refused without waiting for it. Raises LumosXError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LumosXError(f"{what} '{os.fspath(path)}' cannot be opened: {reason}") from error
    status = os.fstat(descriptor)
    problem = None
    if stat.S_ISDIR(status.st_mode):
        problem = "is a folder, not a file"
    elif not stat.S_ISREG(status.st_mode):
        problem = "is a pipe or a device, not a file"
    elif status.st_size == 0:
        problem = "is empty (0 bytes); write it again"
    elif status.st_size > max_bytes:
        problem = f"has {status.st_size:,} bytes, at most {max_bytes:,} are read; make it smaller"
    if problem:
        os.close(descriptor)
        raise LumosXError(f"{what} '{os.fspath(path)}' {problem}")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from an untrusted file. Raises LumosXError if it is not one."""
    try:
        if path.stat().st_size > _JSON_LIMIT_BYTES:
            raise LumosXError(f"{path}: over {_JSON_LIMIT_BYTES} bytes, not read")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LumosXError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise LumosXError(f"{path}: a JSON object is expected, not a {type(found).__name__}")
    return found


def sha256_of(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(root: Path, relative: str) -> Path:
    """Return `root`/`relative`, if it stays inside `root`, links followed. Raises LumosXError."""
    path = root / relative
    try:
        held = not os.path.isabs(relative) and path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
        held = False
    if not held:
        raise LumosXError(
            f"{relative!r:.200} leads out of the folder '{root}'; copy the file into it and give "
            "a relative path"
        )
    return path


def read_text(path: Path, what: str) -> str:
    """A UTF-8 file of at most 1 MiB; an empty one is "". Raises LumosXError."""
    if path.is_file() and path.stat().st_size == 0:
        return ""
    with open_regular(path, _TEXT_LIMIT_BYTES, what) as file:
        try:
            return file.read(_TEXT_LIMIT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise LumosXError(f"{what} '{path}' is not UTF-8 text ({error}); save it so") from error

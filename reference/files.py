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

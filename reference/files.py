"""Files: written whole or not at all, by one process at a time, read under limits, hashed."""

import hashlib
import io
import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from lumosx_rt.reference.errors import BadInput

_JSON_LIMIT_BYTES = 1 << 27
_TEXT_LIMIT_BYTES = 1 << 20
_ANY_BYTES = 1 << 62
_LOOK_BYTES = 1024
_BLOCK_BYTES = 1 << 22
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body")
_XML = (b"<?xml", b"<error")
_PACKED = (
    (b"GGUF", "gguf", "a GGUF file, which is not read: take the safetensors or torch weights"),
    (b"PK\x03\x04", "zip", "a zip archive: unpack it, or name a torch file .pt or .pth"),
    (b"\x1f\x8b", "gzip", "packed with gzip: unpack it"),
    (b"\xfd7zXZ\0", "xz", "packed with xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd", "packed with zstd: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "a 7z archive: unpack it"),
    (b"Rar!", "rar", "a rar archive: unpack it"),
)
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
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file or a folder onto the disk."""
    with suppress(OSError):  # some file systems cannot sync a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_regular(
    path: str | os.PathLike[str],
    max_bytes: int,
    what: str,
    accepted: Collection[str] = (),
    empty: bool = False,
) -> BinaryIO:
    """Open a regular file of at most `max_bytes`; `what` names it in messages.

    A pipe or a device is refused without waiting for it, and so is what stands in a file's place:
    see `stand_in`, where the kinds are that may be `accepted`. empty: also one of 0 bytes. Raises
    LumosXError.
    """
    try:
        file, status = _opened(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{what} '{os.fspath(path)}' cannot be opened: {reason}") from error
    problem = None
    if stat.S_ISDIR(status.st_mode):
        problem = "is a folder, not a file"
    elif not stat.S_ISREG(status.st_mode):
        problem = "is a pipe or a device, not a file"
    elif status.st_size == 0 and not empty:
        problem = "is empty (0 bytes); write it again"
    elif status.st_size > max_bytes:
        problem = f"has {status.st_size:,} bytes, at most {max_bytes:,} are read; make it smaller"
    else:
        problem = stand_in(file.read(_LOOK_BYTES), accepted)
        file.seek(0)
    if problem:
        file.close()
        raise BadInput(f"{what} '{os.fspath(path)}' {problem}")
    return file


def _opened(path: str | os.PathLike[str]) -> tuple[BinaryIO, os.stat_result]:
    """Open anything but wait for nothing."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        os.close(descriptor)
        return cast(BinaryIO, io.BytesIO()), status
    return os.fdopen(descriptor, "rb"), status


def stand_in(head: bytes, accepted: Collection[str] = ()) -> str | None:
    """Say what a file is that only stands in the place of another, by its first bytes.

    accepted: kinds that are meant here, of json, html, xml, zip and safetensors.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs.github.com"):
        return "is a git-lfs pointer, not the file: fetch it with `git lfs pull`"
    if text.startswith((b"# xet version", b"/annex/objects/", b"../.git/annex/objects/")):
        return "is a pointer (git-xet or git-annex), not the file: fetch the file itself"
    for kind, seen, said in (
        ("html", text.startswith(_HTML), "an HTML page"),
        ("xml", text.startswith(_XML) and b"<svg" not in text, "an XML page"),
        ("json", text.startswith(b"{") and b"\0" not in head, "JSON text"),
    ):
        if seen and kind not in accepted:
            return f"is {said}, not the file: a server said something else; download it again"
    for magic, kind, said in _PACKED:
        if head.startswith(magic) and kind not in accepted:
            return f"is {said}"
    if head[8:10] == b'{"' and "safetensors" not in accepted and not any(head[4:8]):
        return "is a safetensors file; name it .safetensors"
    return None


def look_at(path: Path, what: str, accepted: Collection[str] = ()) -> None:
    """Refuse what `open_regular` would, but empty files, for readers that open it themselves."""
    open_regular(path, _ANY_BYTES, what, accepted, empty=True).close()


def read_json(path: Path, max_bytes: int = _JSON_LIMIT_BYTES) -> dict[str, Any]:
    """Read a JSON object from an untrusted file. Raises LumosXError if it is not one."""
    if not os.path.lexists(path):
        raise BadInput(f"{path}: not readable as JSON (no such file)")
    try:
        with open_regular(path, max_bytes, "JSON file", ("json",)) as file:
            found = json.loads(file.read(max_bytes).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: a JSON object is expected, not a {type(found).__name__}")
    return found


def hash_file(total: "hashlib._Hash", path: Path) -> None:
    """Add a regular file's content to a hash. Raises LumosXError for a pipe or a device."""
    file, status = _opened(path)
    with file:
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"'{path}' is no regular file; put the file itself there")
        while block := file.read(_BLOCK_BYTES):
            total.update(block)


def sha256_of(path: Path) -> str:
    """Hash a regular file's content. Raises LumosXError for a pipe or a device."""
    total = hashlib.sha256()
    hash_file(total, path)
    return total.hexdigest()


def inside(root: Path, relative: str) -> Path:
    """Return `root`/`relative`, if it stays inside `root`, links followed. Raises LumosXError."""
    path = root / relative
    try:
        held = not os.path.isabs(relative) and path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
        held = False
    if not held:
        raise BadInput(
            f"{relative!r:.200} leads out of the folder '{root}'; copy the file into it and give "
            "a relative path"
        )
    return path


def read_text(path: Path, what: str) -> str:
    """A UTF-8 file of at most 1 MiB; an empty one is "". Raises LumosXError."""
    if path.is_file() and path.stat().st_size == 0:
        return ""
    with open_regular(path, _TEXT_LIMIT_BYTES, what, ("json", "html", "xml")) as file:
        try:
            return file.read(_TEXT_LIMIT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{what} '{path}' is not UTF-8 text ({error}); save it so") from error

"""Files: written whole or not at all, by one process at a time, read under limits, hashed."""

import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
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
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
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


# -- where output goes ----------------------------------------------------------------------------


def place_of(out: str | os.PathLike[str]) -> Path:
    """Return where an output goes: absolute, and where a link leads, also one to nothing yet.

    Raises LumosXError for links in a circle.
    """
    found = Path(os.path.realpath(out))
    if found.is_symlink():
        raise BadInput(f"{out}: links that lead in a circle; give another name")
    return found


def nearest_folder(path: Path) -> Path:
    """Return the folder that exists, of those that an absolute path lies in."""
    return next(parent for parent in path.parents if os.path.lexists(parent))


def try_place(out: Path) -> None:
    """Refuse a place that cannot be written, before the work that is to be written there.

    A file is really written, and the place really tried to be renamed over: permissions do not
    tell of disks that are full, mounted read-only, or mounted there. Raises LumosXError.
    """
    with _tried(nearest_folder(out), out) as empty:
        if out.is_dir():
            _try_rename(empty, out)


def try_folder(folder: Path) -> None:
    """Refuse a folder that nothing can be written into, as `try_place` does; it is not renamed."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise BadInput(f"{folder} is a file, not a folder; choose another place")
    with _tried(folder if folder.is_dir() else nearest_folder(folder), folder):
        pass


@contextmanager
def _tried(inside: Path, out: Path) -> Iterator[Path]:
    """Write a file, and yield an empty folder, which is removed."""
    try:
        tried = Path(tempfile.mkdtemp(".probe", f".{out.name:.100}.", inside))
        try:
            with (tried / "file").open("wb") as file:
                file.write(bytes(1 << 12))
                file.flush()
                os.fsync(file.fileno())
            (tried / "file").unlink()
            yield tried
        finally:
            remove(tried)
    except OSError as error:
        reason = error.strerror
        if error.errno in (errno.EBUSY, errno.EXDEV):
            reason = "it is mounted there, so nothing can take its place; give a folder inside it"
        raise BadInput(
            f"{out}: cannot be written in {inside} ({reason}); choose another place"
        ) from error


def _try_rename(empty: Path, out: Path) -> None:
    """Try whether a folder may take another's place, which is left as it is."""
    if not any(out.iterdir()):
        os.rename(out, empty)  # and not the other way: somebody may stand in it
        os.rename(empty, out)
        return
    try:
        os.rename(empty, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, whichever it is, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move_folder(made: Path, out: Path) -> None:
    """Give a finished folder its name; its content is on the disk when this returns.

    What stands at `out` is replaced. If that fails, both are as they were.
    """
    for root, _, names in os.walk(made):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))
    out.parent.mkdir(parents=True, exist_ok=True)
    old = out.with_name(f".{out.name}.old")
    remove(old)
    there = os.path.lexists(out)
    if there:
        os.replace(out, old)
    try:
        os.replace(made, out)
    except BaseException:
        if there:
            os.replace(old, out)
        raise
    _sync(out.parent)
    with suppress(OSError):  # the next one removes it
        remove(old)


# -- one process at a time ------------------------------------------------------------------------


@contextmanager
def held(path: Path, what: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold an output for this process alone while the block runs.

    A lock on a file beside `path` says so. It is gone with the process, however that ends. what:
    the work, for messages, like "build". waiting: told whose work is waited for; without it, what
    another process holds is refused with a LumosXError. Where files cannot be locked, nobody waits.
    """
    lock = path.with_name(f".{path.name}.lock")
    missing = [parent for parent in lock.parents if not parent.exists()]
    descriptor = _lock_file(lock, path, what, waiting)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                lock.unlink()  # while it is held, or it might be another's already
            os.close(descriptor)
        with suppress(OSError):  # one that is not empty stays
            for parent in missing:
                parent.rmdir()


def _lock_file(
    lock: Path, path: Path, what: str, waiting: Callable[[str], None] | None
) -> int | None:
    """Return the descriptor of a locked file; None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return None
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # it cannot be written: no other can, either
            return None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _busy(os.pread(descriptor, 32, 0), path, what, waiting)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, lock):  # whoever had it removed it
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _busy(holder: bytes, path: Path, what: str, waiting: Callable[[str], None] | None) -> None:
    pid = holder.decode("ascii", "replace").strip()
    whose = f" (pid {pid})" if pid.isdigit() else ""
    if waiting is None:
        raise BadInput(
            f"{path}: another {what} is under way there{whose}; wait until it has finished, or "
            "choose another place"
        )
    waiting(f"waiting for another {what}{whose}")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False

"""Where output goes: places tried before the work, taken at its end, and held meanwhile."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import sync

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
            sync(Path(root, name))
        sync(Path(root))
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
    sync(out.parent)
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

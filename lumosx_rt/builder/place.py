"""Where an engine goes: what may be replaced, what is up to date, how it takes its place."""

import os
from pathlib import Path

from lumosx_rt.artifact.manifest import STAGES, check_files, is_engine, read_manifest
from lumosx_rt.backends.common.compiler import Compiler
from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.places import move_folder, try_place


def check_place(out: Path, force: bool) -> bool:
    """Tell whether an engine is at `out`. Raises LumosXError where none may be built.

    An empty folder is free. What is no engine is never replaced.
    """
    free = not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir()))
    if not free and not is_engine(out):
        raise BadInput(f"{out} exists and is no engine; choose another name, or move it away")
    if free or force:  # else nothing is written: it is up to date, or refused
        try_place(out)
    return not free


def why_not_up_to_date(out: Path, key: str, compiler: Compiler) -> str | None:
    """Say why an engine is not the one that would be built."""
    try:
        manifest = read_manifest(out)
        check_files(out, manifest)
    except LumosXError as error:
        return str(error)
    if manifest.checkpoint.get("build") != key:
        return f"{out} is an engine built from other inputs"
    if not compiler.vouches_for(out):
        return f"{out} holds compiled code that was made elsewhere"
    return None


def put_in_place(partial: Path, out: Path, *, force: bool = True) -> None:
    """Give a finished engine its name. Until that has worked, what was there stays, and stages too.

    force: replace an engine; without it, one that came in the meantime is left alone.
    """
    if check_place(out, force=True) and not force:
        raise BadInput(
            f"{out} was built by somebody else in the meantime; what was built here is kept: "
            "the same command with --force puts it there"
        )
    try:
        move_folder(partial, out)
    except OSError as error:
        raise BadInput(
            f"{out}: the finished engine cannot take its place ({error.strerror}); it is kept, "
            "make room there, and give the same command again"
        ) from error
    (out / STAGES).unlink(missing_ok=True)

"""A benchmark's folder: whose it is, and lines of JSON that survive a kill."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.files import of_the_system, read_json, write_atomically
from lumosx_rt.reference.places import held, place_of, try_folder

RUN_FILE = "run.json"


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Hold a benchmark's folder for this process, once it is seen that it can be written.

    Raises LumosXError where another process has it.
    """
    place = place_of(folder)
    with held(place, "benchmark"):
        try_folder(place)
        yield


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make the folder this run's own, and clean. Raises LumosXError for one with another run, or
    anything else, in it."""
    file = folder / RUN_FILE
    wanted = json.loads(json.dumps(identity))
    if not file.is_file():
        if folder.exists() and not (folder.is_dir() and _is_empty(folder)):
            raise BadInput(f"{folder} exists and holds no benchmark; choose another with -o")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        return
    found = read_identity(file)
    if found != wanted:
        parts = sorted(_differing(found, wanted))
        raise BadInput(
            f"{folder} holds another run, with another {', '.join(parts)}; choose another folder "
            "with -o, or remove it"
        )
    for half in folder.rglob(".*.partial"):  # of a run that was killed while it wrote
        half.unlink(missing_ok=True)


def read_identity(file: Path) -> dict[str, Any]:
    """Read run.json. Raises LumosXError if it is none."""
    try:
        return read_json(file)
    except LumosXError as error:
        raise BadInput(f"{file}: not the {RUN_FILE} of a benchmark ({error})") from None


def whole_lines(file: Path) -> list[str]:
    """Lines that end; what follows the last one was torn."""
    whole = file.read_bytes().rpartition(b"\n")[0] if file.is_file() else b""
    return whole.decode("utf-8", "replace").split("\n") if whole else []


def append_line(file: Path, line: str) -> None:
    """Add a line, in place of one that was torn."""
    with file.open("ab+") as stream:
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(f"{line}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def _is_empty(folder: Path) -> bool:
    """Tell whether a folder holds nothing but what a killed run left over."""
    return all(of_the_system(path.name) for path in folder.iterdir())


def _differing(a: Any, b: Any, name: str = "") -> set[str]:
    """Return the entries, named by their path, in which two trees of dictionaries differ."""
    if a == b:
        return set()
    if isinstance(a, dict) and isinstance(b, dict):
        return {
            found
            for key in a.keys() | b.keys()
            for found in _differing(a.get(key), b.get(key), f"{name}.{key}" if name else key)
        }
    return {name}

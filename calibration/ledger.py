"""What has been computed once is found again: a folder of notes, each whole or not there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lumosx_rt.reference.files import replacing

IDENTITY_FILE = "identity.json"


class Ledger:
    """Notes of one run. A folder that holds another run's is emptied first."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        wanted = json.dumps(identity, sort_keys=True, indent=2) + "\n"
        file = folder / IDENTITY_FILE
        if not file.is_file() or file.read_text("utf-8") != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            _write(file, wanted)

    def note(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns (anything that JSON holds), or returned when it was asked
        before.

        Read back from the file either way, so that a run that was killed ends bit-equal.
        """
        file = self.folder / f"{name}.json"
        if not file.is_file():
            _write(file, json.dumps(compute(), allow_nan=False))
        return json.loads(file.read_text("utf-8"))

    def close(self) -> None:
        """Remove all notes: the run is finished."""
        shutil.rmtree(self.folder)


def _write(file: Path, text: str) -> None:
    with replacing(file) as temporary:
        temporary.write_text(text, "utf-8")

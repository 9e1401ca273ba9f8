"""An engine's certificate: its last comparison with the reference, as `verify` wrote it.

It belongs to one content: that of the manifest, which has the hash of every file. After another
build it is none.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

from lumosx_rt.artifact.manifest import MANIFEST, read_manifest
from lumosx_rt.artifact.report import read_report, write_report
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import sha256_of

BINDING = ("identity", "binding", "swapped", "missing", "psnr")
Standing = Literal["passed", "failed", "none"]


class NotVerified(UserWarning):
    """An engine is used that was never compared with the reference."""


def digest_of(folder: Path) -> str:
    """Return what a certificate is bound to."""
    return sha256_of(folder / MANIFEST)


def certificate_of(folder: Path) -> dict[str, Any] | None:
    """Return the comparison of this very content; None where there is none."""
    check = read_report(folder).get("verify")
    if check is None or check.get("engine_sha256") != digest_of(folder):
        return None
    return check


def certify_binding(folder: Path, scene_list: str, paired: dict[str, Any]) -> None:
    """Add an engine's binding benchmark, less another run's (the reference's, say), to its report.

    paired: of `bench.table.compare`, with the `run` it was compared with.
    """
    found = paired["groups"]["all"]
    section = {
        "list": scene_list,
        "scenes": paired["scenes"],
        "against": Path(paired["run"]).name,
        "engine_sha256": digest_of(folder),
        "differences": {name: found[name] for name in BINDING if name in found},
    }
    write_report(folder, read_manifest(folder), binding=section)


def standing(folder: Path) -> Standing:
    check = certificate_of(folder)
    if check is None:
        return "none"
    return "passed" if check["passed"] is True else "failed"


def demand(folder: Path, *, unverified: bool) -> None:
    """Warn (`NotVerified`) where an engine has no certificate; raise LumosXError where it failed.

    unverified: take it either way.
    """
    found = "passed" if unverified else standing(folder)
    if found == "failed":
        raise LumosXError(
            f"{folder} does not make the reference's videos: its last check failed (see "
            f"{folder}/report.md); build it again, or use it all the same with --unverified "
            "(rt.load(..., unverified=True))"
        )
    if found == "none":
        said = (
            f"{folder} has not been compared with the reference; "
            f"do it with `lumosx-rt verify {folder} SCENE`"
        )
        warnings.warn(said, NotVerified, stacklevel=4)

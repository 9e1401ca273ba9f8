"""What a .pt2 must be before it is loaded: it holds compiled code, and loading it runs that code.

Made on this machine or trusted by name, for this device and torch, with members that stay inside
the folder it is unpacked into (torch unpacks them by whatever name they have).
"""

import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import PACKAGE, Manifest
from lumosx_rt.backends.common.devices import device_facts
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.files import sha256_of

_REBUILD = "build it again: lumosx-rt build CHECKPOINT -o {folder} --backend torch --force"


def check_package(folder: Path, manifest: Manifest, *, trust: bool) -> None:
    """Raise LumosXError where an engine's package must not or cannot run here.

    trust: accept code that was compiled elsewhere.
    """
    rebuild = _REBUILD.format(folder=folder)
    if not (folder / PACKAGE).is_file():
        raise Unsupported(f"{folder} has no {PACKAGE}; {rebuild}")
    made, here = manifest.versions.get("torch", "unknown"), torch.__version__.split("+")[0]
    if made.split(".")[:2] != here.split(".")[:2]:
        raise Unsupported(
            f"{folder} was compiled with torch {made}, here is {here}; a package runs with the "
            f"minor version that made it; {rebuild}"
        )
    _check_device(folder, manifest.device, rebuild)
    if not trust and not cache.compiled_here(sha256_of(folder / PACKAGE)):
        raise Unsupported(
            f"{folder}: {PACKAGE} holds compiled code that was made elsewhere, and loading it "
            f"would run it with your rights; {rebuild}; or, if you know where it comes from, load "
            "it with --trust (rt.load(..., trust=True))"
        )
    _check_members(folder / PACKAGE)


def _check_device(folder: Path, wanted: dict[str, Any], rebuild: str) -> None:
    device = "cuda" if "capability" in wanted else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise Unsupported(
            f"{folder} was compiled for a GPU ({wanted.get('name')}), torch finds none here; "
            f"{rebuild} --device cpu"
        )
    here = device_facts(device)
    differing = [
        f"{name} {wanted.get(name)} (here {found})"
        for name, found in here.items()
        if wanted.get(name) != found and name != "cudnn" and (name != "name" or device == "cpu")
    ]
    if differing:
        raise Unsupported(f"{folder} was compiled for {', '.join(differing)}; {rebuild}")
    made, found = int(wanted.get("cudnn", 0)), int(here.get("cudnn", 0))
    if found < made:
        raise Unsupported(
            f"{folder} was compiled with cuDNN {made}, whose attention it calls, here is "
            f"{found or 'none'}; install a cuDNN as new, or {rebuild}"
        )


def _check_members(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise Unsupported(f"{path.name}: no package ({error}); build the engine again") from None
    for member in members:
        name = member.orig_filename
        inside = PurePosixPath(name)
        plain = str(inside) == name.rstrip("/") and not set(name) & {"\\", ":", "\0"}
        linked = stat.S_ISLNK(member.external_attr >> 16)
        if inside.is_absolute() or ".." in inside.parts or not plain or linked:
            raise Unsupported(
                f"{path.name}: its member {name!r} would be unpacked outside its folder; the "
                "package was tampered with, do not trust it"
            )

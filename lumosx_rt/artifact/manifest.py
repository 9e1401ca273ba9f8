"""manifest.json: the only entry point of an engine directory, and everything it promises.

    engine/
      manifest.json
      transformer/model.onnx  transformer/model.onnx.data
      transformer/model.pt2   instead, in an engine of the backend torch: compiled code
      transformer/model.plan  instead, of tensorrt-rtx and tensorrt: compiled code for a GPU
      transformer/model-4.plan ...  in FP8, one for scenes of up to so many references
      calibration.json        in FP8: its scales and where they come from
      components/...          only in a self-contained engine
      report.json .md .png    the last check, the engine's certificate; not part of the content

Forbidden: absolute paths, paths that leave the folder, pickles, code (but for those two, which are
loaded only where they were made, or on trust), files that are not listed, listed files that are
missing or differ, links whose content was not compared. What systems and hubs put beside an
engine's files (hidden files, a README, a LICENSE) is never read, and ignored.
Reading it runs no code and needs neither torch nor numpy.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from lumosx_rt.artifact.defaults import default_problems
from lumosx_rt.calibration.formats import FORMATS
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import BadInput, LumosXError, listing
from lumosx_rt.reference.files import (
    of_the_system,
    read_json,
    sha256_of,
    stand_in,
    write_atomically,
)

FORMAT = 1
LUMOSX = "lumosx"
MANIFEST = "manifest.json"
STAGES = "stages.json"  # of a build that is not finished
REPORTS = ("report.json", "report.md", "report.png")
PICTURE = REPORTS[2]
GRAPH, PACKAGE = "transformer/model.onnx", "transformer/model.pt2"
PLAN = "transformer/model.plan"
CALIBRATION = "calibration.json"
_NOT_CONTENT = (MANIFEST, STAGES, *REPORTS)
LAYOUTS = ("frames", "height", "width", "seeds", "references", "members")
_MAX_MANIFEST_BYTES = 4 << 20
_BESIDE = {"README", "LICENSE", "LICENCE", "NOTICE"}
_FORBIDDEN_SUFFIXES = {".pkl", ".pickle", ".pt", ".pt2", ".pth", ".bin", ".py", ".so", ".plan"}
_CODE = {("torch", PACKAGE), ("tensorrt-rtx", PLAN), ("tensorrt", PLAN)}
_BUCKET = re.compile(r"transformer/model-([1-9]\d{0,3})\.plan")


@dataclass(frozen=True)
class FileRecord:
    """Content of one file of the engine."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an engine is, what it was built from and for, and the files it consists of."""

    model: dict[str, Any]
    """The transformer's sizes and switches (`LumosXConfig`)."""
    checkpoint: dict[str, Any]
    """`sha256` of the weights and where they came from: {"source": "random", "preset", "seed"} or
    {"source": "bundle", "kind"}."""
    backend: str
    precision: str
    device: dict[str, Any]
    """What it was built for: a name, and for a package the processor's `machine` and
    `instructions`, or the GPU's `machine` and `capability`; for a plan its `targets`."""
    versions: dict[str, str]
    layouts: dict[str, list[int]]
    """Supported range [least, most] of frames, height, width (tokens), references, members, ..."""
    defaults: dict[str, Any]
    """What `generate` uses where nothing is said: frames, height, width (pixels), steps, ..."""
    components: dict[str, str] = field(default_factory=dict)
    """sha256 of the text encoder, tokenizer and VAE it belongs to."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    mechanism: str = LUMOSX
    """How pictures and words enter the video; not written where it is LumosX."""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write manifest.json, whole or not at all."""
        entries = asdict(self)
        if self.mechanism == LUMOSX:
            del entries["mechanism"]  # only engines of another one name it
        text = json.dumps(entries, indent=2, sort_keys=True, ensure_ascii=False)
        write_atomically(folder / MANIFEST, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json (not the files it lists).

    Raises LumosXError where the folder is no engine, is of a newer format, or states something
    that is malformed or forbidden.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path) or path.is_dir():
        raise BadInput(
            f"{folder} is not an engine: there is no {MANIFEST}; "
            "make one with `lumosx-rt build CHECKPOINT -o ENGINE`"
        )
    if path.is_file() and path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BadInput(f"{path}: larger than any manifest ({_MAX_MANIFEST_BYTES} bytes)")
    raw = read_json(path, _MAX_MANIFEST_BYTES)
    if not _has_format(raw):
        raise BadInput(f"{path}: has no positive integer `format`; build the engine again")
    if raw["format"] > FORMAT:
        raise BadInput(
            f"{path}: format {raw['format']} is newer than {FORMAT}, the newest this version "
            "reads; upgrade lumosx-rt or build the engine again"
        )
    raw.setdefault("mechanism", LUMOSX)
    problems = _shape_problems(raw)
    if not problems:
        problems = [p for name in raw["files"] for p in path_problems(name, raw["backend"])]
    if problems:
        raise BadInput(listing(str(path), problems))
    records = {name: FileRecord(**record) for name, record in raw["files"].items()}
    return Manifest(**raw | {"files": records})


def is_engine(folder: Path) -> bool:
    """Tell whether a folder is an engine, of any format, damaged or not: by what its manifest says.

    Other products have files of that name, too.
    """
    try:
        raw = read_json(folder / MANIFEST, _MAX_MANIFEST_BYTES)
    except LumosXError:
        return False
    return _has_format(raw) and isinstance(raw.get("backend"), str)


def _has_format(raw: dict[str, Any]) -> bool:
    return type(raw.get("format")) is int and raw["format"] >= 1


def _shape_problems(raw: dict[str, Any]) -> list[str]:
    kinds = {
        f.name: str if f.type is str else int if f.type is int else dict for f in fields(Manifest)
    }
    problems = [f"`{name}` is missing" for name in kinds if name not in raw]
    problems += [f"`{name}` is not known" for name in raw if name not in kinds]
    problems += [
        f"`{name}` must be a {kind.__name__}, got {type(raw[name]).__name__}"
        for name, kind in kinds.items()
        if name in raw and type(raw[name]) is not kind
    ]
    return problems or [*_table_problems(raw), *_record_problems(raw["files"])]


def _table_problems(raw: dict[str, Any]) -> list[str]:
    """Return what is wrong inside the tables that engines read."""
    problems = []
    try:
        LumosXConfig(**raw["model"])
    except (LumosXError, TypeError) as error:
        problems.append(f"`model`: {error}")
    if raw["precision"] not in FORMATS:
        problems.append(f"`precision` is {raw['precision']!r}, accepted are {', '.join(FORMATS)}")
    problems += [f"`defaults`: {problem}" for problem in default_problems(raw["defaults"])]
    problems += [
        f"`layouts`: {axis!r} must be [least, most], got {limits!r}"
        for axis, limits in ({axis: None for axis in LAYOUTS} | raw["layouts"]).items()
        if not (isinstance(limits, list) and [type(n) for n in limits] == [int, int])
    ]
    wanted: dict[str, type] = {"sha256": str, "source": str}
    if raw["checkpoint"].get("source") == "random":
        wanted |= {"preset": str, "seed": int}
    problems += [
        f"`checkpoint`: {name!r} must be a {kind.__name__}"
        for name, kind in wanted.items()
        if type(raw["checkpoint"].get(name)) is not kind
    ]
    problems += [
        f"`{table}`: {key!r} must be text"
        for table in ("components", "versions")
        for key, value in raw[table].items()
        if not isinstance(value, str)
    ]
    return problems


def _record_problems(records: dict[str, Any]) -> list[str]:
    return [
        f"`files`: {name!r} needs a sha256 and a number of bytes"
        for name, record in records.items()
        if not (
            isinstance(record, dict)
            and set(record) == {"sha256", "bytes"}
            and type(record["bytes"]) is int
            and re.fullmatch("[0-9a-f]{64}", str(record["sha256"]))
        )
    ]


def path_problems(name: str, backend: str = "onnxruntime") -> list[str]:
    """List what is wrong with a file name of a manifest: it must be relative, inside, and plain
    data.

    Only torch and the TensorRTs have files of code: a `PACKAGE`, a `PLAN`, plans of buckets.
    """
    path = PurePosixPath(name)
    plain = path.parts and str(path) == name and not set(name) & {"\\", ":"}
    if path.is_absolute() or ".." in path.parts or not plain:
        return [f"{name!r} must be a plain relative path inside the engine"]
    if path.suffix.lower() in _FORBIDDEN_SUFFIXES and not _is_code(name, backend):
        return [f"{name!r}: files of type {path.suffix} can run code and are forbidden"]
    if name in _NOT_CONTENT:
        return [f"{name!r} cannot be listed"]
    return []


def _is_code(name: str, backend: str) -> bool:
    return (backend, name) in _CODE or (backend == "tensorrt-rtx" and bool(_BUCKET.fullmatch(name)))


def plan_of(references: int) -> str:
    """Return the plan for scenes of up to so many references, where there are several."""
    return f"transformer/model-{references}.plan"


def buckets_of(names: Iterable[str]) -> list[int]:
    """Return the references of every such plan among files, fewest first."""
    found = (_BUCKET.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Hash every file of a folder, except the manifest, the reports, and what is never read."""
    return {
        name: FileRecord(sha256_of(folder / name), (folder / name).stat().st_size)
        for name in _names_in(folder)
        if not _ignored(name)
    }


def check_files(folder: Path, manifest: Manifest, *, hashes: bool = True) -> None:
    """Compare the folder with the manifest's `files`: names and sizes, and content if `hashes`.

    A link is accepted where its content is compared. Raises one LumosXError naming everything that
    is missing, unlisted, linked or different, and what to do about each kind.
    """
    found: dict[str, list[str]] = {kind: [] for kind in _ADVICE}
    for name in _names_in(folder):
        if name not in manifest.files and not _ignored(name):
            linked = (folder / name).is_symlink() and (folder / name).is_dir()
            what = "linked" if linked else "strange"
            found[what].append(f"{name} is {'a link to a folder' if linked else 'not listed'}")
    for name in REPORTS:
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            found["strange"].append(f"{name} is no regular file")
    for name, record in manifest.files.items():
        kind, problem = _file_problem(folder, name, record, hashes)
        if problem is not None:
            found[kind].append(problem)
    problems = [problem for kind in found.values() for problem in kind]
    if problems:
        advice = [_ADVICE[kind] for kind, some in found.items() if some]
        raise BadInput(listing(f"engine {folder}", problems) + "\n" + "\n".join(advice))


_ADVICE = {
    "built": "build it again, with --force to replace it",
    "elsewhere": "fetch the files that others stand in the place of",
    "linked": "copy it with links followed (cp -rL)",
    "strange": "remove what is not the engine's own",
}


def _file_problem(
    folder: Path, name: str, record: FileRecord, hashes: bool
) -> tuple[str, str | None]:
    """Return what is wrong with a listed file, after the kind of advice that mends it."""
    path = folder / name
    if not os.path.lexists(path):
        return "built", f"{name} is missing"
    if not path.is_file():
        if path.is_symlink():
            return "linked", f"{name} is a link to nothing that can be read"
        return "strange", f"{name} is no regular file"
    linked = path.is_symlink() or not path.resolve().is_relative_to(folder.resolve())
    if linked and not hashes:
        return "linked", f"{name} is a link, and content is not compared (check_hashes)"
    size = path.stat().st_size
    if size == record.bytes and not (hashes and sha256_of(path) != record.sha256):
        return "built", None
    if stood := _stand_in(path):
        return "elsewhere", f"{name} {stood}"
    if size != record.bytes:
        return "built", f"{name} has {size} bytes, not {record.bytes}"
    return "built", f"{name} differs from what was built (sha256)"


def _stand_in(path: Path) -> str | None:
    with path.open("rb") as file:
        return stand_in(file.read(1 << 10), ("json", "xml", "zip", "safetensors"))


def _ignored(name: str) -> bool:
    """Tell whether a file that no manifest lists may lie in an engine: nothing reads it, and it is
    no code."""
    path = PurePosixPath(name)
    beside = len(path.parts) == 1 and path.stem.upper() in _BESIDE
    return (beside or any(map(of_the_system, path.parts))) and (
        path.suffix.lower() not in _FORBIDDEN_SUFFIXES
    )


def _names_in(folder: Path) -> list[str]:
    names = []
    for root, folders, files in os.walk(folder):
        for name in [*files, *(d for d in folders if Path(root, d).is_symlink())]:
            names.append(Path(root, name).relative_to(folder).as_posix())
    return sorted(n for n in names if n not in _NOT_CONTENT)

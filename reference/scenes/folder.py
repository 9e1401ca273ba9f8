"""A scene on disk: the prompt folder of the released scripts (docs/spec.md#prompt-folders), and
scene.toml.

    caption.txt            "name;caption", or the caption alone
    background/<word>.png  at most one
    objects/<word>.png     one file for each object
    subjects/<n>/          one folder for each person: face_<word>.png and <attribute>.png

A prompt folder says a word by a file name and an order by a listing, so it cannot say everything.
scene.toml says the rest; what is written is read back, and gets a scene.toml only where it must.
Folders are untrusted: nothing outside the folder is read, whether by a path or by a link.
"""

import json
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from lumosx_rt.reference.errors import LumosXError, listing
from lumosx_rt.reference.files import open_regular
from lumosx_rt.reference.scenes.images import MAX_FILE_BYTES

Order = Literal["stable", "listing"] | Callable[[list[str]], Iterable[str]]
Script = Literal["subject", "face"]

SCENE_FILE = "scene.toml"
PARTS = ("caption.txt", "background", "objects", "subjects")
MAX_TEXT_BYTES = 1 << 20

_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in a file name: controls, not UTF-8
_TOML_KINDS = {str: "a string", bool: "true or false", dict: "a table", list: "an array"}


@dataclass(frozen=True)
class Reference:
    """One picture and the word of the caption that it shows."""

    word: str
    image: Path | Image.Image

    def __post_init__(self) -> None:
        if not isinstance(self.image, Image.Image):
            object.__setattr__(self, "image", Path(self.image))


@dataclass(frozen=True)
class Subject:
    """One person: pictures in the order the model sees them (it matters, docs/spec.md#r2pe)."""

    references: tuple[Reference, ...]
    face: int | None = 0
    """Which of the pictures is the face; None where there is none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "references", tuple(self.references))
        if not self.references:
            object.__setattr__(self, "face", None)
        elif self.face is not None and not 0 <= self.face < len(self.references):
            raise LumosXError(
                f"subject: face {self.face} is not one of its {len(self.references)} pictures; "
                "give its place, counted from 0, or None"
            )


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What the files of a scene say."""

    name: str
    caption: str
    background: Reference | None = None
    objects: tuple[Reference, ...] = ()
    subjects: tuple[Subject, ...] = ()
    alpha: str = "composite"
    exif: bool = True
    findings: tuple[str, ...] = field(default=(), compare=False)
    """What is wrong with the files, one sentence each."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What is odd about them."""

    def words(self) -> tuple[object, ...]:
        """All that it says but the pictures themselves."""
        lone = self.background and self.background.word, *(r.word for r in self.objects)
        subjects = [([r.word for r in g.references], g.face) for g in self.subjects]
        return self.name, self.caption, lone, subjects, self.alpha, self.exif


def file_name(text: str) -> str:
    """Make `text` into one plain file name: no path, no hidden file, at most 100 bytes."""
    text = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|;]', "_", text).strip(" .")
    return text.encode(errors="ignore")[:100].decode(errors="ignore").strip(" .") or "scene"


# -- prompt folders -----------------------------------------------------------------------------


def read_folder(root: Path, order: Order, script: Script) -> Sheet:
    """Return what a prompt folder says; orders and scripts as in `Scene.from_folder`.

    Raises LumosXError for a folder that is no prompt folder or reaches outside itself. Everything
    else that is wrong becomes a finding.
    """
    if not callable(order) and order not in ("stable", "listing"):
        raise LumosXError(f"scene: order '{order}'; accepted are 'stable', 'listing' or a function")
    _must_be_prompt_folder(root)
    name, caption, notes = _read_caption(root)
    findings: list[str] = []
    released = order != "stable"

    def names(part: str) -> list[str]:
        return _names(root, part, order, findings)

    def reference(part: str, file: str, word: str) -> Reference:
        return Reference(word, inside(root, f"{part}/{file}"))

    lone: list[Reference] = []
    files = names("background") if script == "subject" else []
    if len(files) > 1 and not released:
        findings.append(f"background/ holds {len(files)} files ({_some(files)}); keep one of them")
    if files:
        lone.append(reference("background", files[0], files[0].split(".")[0]))
    has_background = bool(lone)
    if script == "subject":
        lone += [reference("objects", file, file.split(".")[0]) for file in names("objects")]
    if released:
        lone = _overwritten(lone)
    background = lone.pop(0) if has_background else None

    subjects = []
    for folder in names("subjects"):
        part = f"subjects/{folder}"
        if not inside(root, part).is_dir():
            findings.append(f"{part} is not a folder; put each subject into a folder of its own")
            continue
        files = [file for file in names(part) if "fullfullbody" not in file]
        if script == "face":
            files = [file for file in files if "face" in file]
            if not files:
                findings.append(f"{part} has no face; the face script needs face_<word>.png")
        if not released:
            files.sort(key=lambda file: "face" not in file)
        members = [reference(part, file, _member_word(file)) for file in files]
        if released:
            members = _overwritten(members)
        faces = [i for i, member in enumerate(members) if "face" in Path(str(member.image)).name]
        subjects.append(Subject(tuple(members), faces[0] if faces else None))
    return Sheet(
        name=name,
        caption=caption,
        background=background,
        objects=tuple(lone),
        subjects=tuple(subjects),
        findings=tuple(findings),
        notes=tuple(notes),
    )


def _must_be_prompt_folder(root: Path) -> None:
    expected = (
        f"expected {SCENE_FILE}, or a prompt folder: caption.txt and, as wanted, "
        "background/<word>.png, objects/<word>.png, subjects/<n>/face_<word>.png"
    )
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise LumosXError(f"scene: the folder '{root}' {what}; {expected}")
    found = sorted(_list(root))
    if not set(found) & set(PARTS):
        scenes = [
            n for n in found if (root / n / PARTS[0]).is_file() or (root / n / SCENE_FILE).is_file()
        ]
        holds = f"it holds {_some(found)}" if found else "it is empty"
        hint = f"; there are prompt folders inside it, give one of them: {_some(scenes)}"
        raise LumosXError(
            f"scene: '{root}' is no prompt folder: {holds}; {expected}{hint if scenes else ''}"
        )


def _read_caption(root: Path) -> tuple[str, str, list[str]]:
    """(name, caption, notes): the name stands before the first ";", or else is the folder's."""
    text = ""
    if (root / PARTS[0]).exists():
        text = read_text(inside(root, PARTS[0]), "caption").strip()
    name, separator, caption = text.partition(";")
    if not separator:
        return file_name(root.resolve().name), text, []
    note = (
        f"caption.txt: what stands before the first ';' names the output ('{name:.60}') and is no "
        "part of the caption; put a short name and a ';' in front if it should be"
    )
    return file_name(name), caption.strip(), [note] if re.search(r"\s", name.strip()) else []


def _names(root: Path, part: str, order: Order, findings: list[str]) -> list[str]:
    """Return the file names in a part of a prompt folder, ordered; none if it is absent."""
    folder = inside(root, part)
    if not folder.exists():
        return []
    if not folder.is_dir():
        findings.append(f"{part} is a file; make it a folder that holds the pictures")
        return []
    names = _list(folder)
    for name in names:
        if _UNWRITABLE.search(name):
            raise LumosXError(f"scene: {part} holds a file with the name {ascii(name)}; rename it")
    if order == "listing":
        return names
    if order == "stable":
        return sorted((name for name in names if not name.startswith(".")), key=_natural)
    return list(order(names))


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise LumosXError(f"scene: '{folder}' cannot be listed: {error.strerror}") from error


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sorts "2" before "10"."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _member_word(file: str) -> str:
    """Return the word of a file in a subject's folder: face_<word>.<suffix>, or <word>.<suffix>."""
    if "face" in file:
        file = file.partition("_")[2]
    return file.rsplit(".", 1)[0]


def _overwritten(references: list[Reference]) -> list[Reference]:
    """As in the release's dictionaries: of equal words the last file, in the first one's place."""
    return list({reference.word: reference for reference in references}.values())


# -- scene.toml ---------------------------------------------------------------------------------


def read_toml(path: Path) -> Sheet:
    """Return what a scene.toml says. Raises one LumosXError with everything it says wrongly."""
    text = read_text(path, "scene")
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise LumosXError(f"scene '{path}' is not TOML: {error or 'nested too deeply'}") from error
    problems: list[str] = []

    def take(table: Any, where: str, **kinds: type) -> dict[str, Any]:
        """Return the entries of a table that are known and of the right kind."""
        if not isinstance(table, dict):
            problems.append(f"{where} must be a table with {', '.join(kinds)}, got {table!r:.60}")
            return {}
        for key in sorted(set(table) - set(kinds)):
            problems.append(f"{where} has an unknown entry '{key}'; known are {', '.join(kinds)}")
        for key in sorted(set(table) & set(kinds)):
            if type(table[key]) is not kinds[key]:
                kind = _TOML_KINDS[kinds[key]]
                problems.append(f"{where}: {key} must be {kind}, got {table[key]!r:.60}")
        return {k: v for k, v in table.items() if k in kinds and type(v) is kinds[k]}

    def reference(table: Any, where: str, **more: type) -> Reference:
        entries = take(table, where, word=str, image=str, **more)
        for key in ("word", "image"):
            if isinstance(table, dict) and key not in table:
                problems.append(f"{where} has no {key}")
        image = Path(entries.get("image", ""))
        try:
            image = inside(path.parent, entries.get("image", ""))
        except LumosXError as error:
            problems.append(f"{where}: {error}")
        return Reference(entries.get("word", ""), image)

    top = take(
        content,
        "the file",
        name=str,
        caption=str,
        alpha=str,
        exif=bool,
        background=dict,
        objects=list,
        subjects=list,
    )
    background = reference(top["background"], "background") if "background" in top else None
    objects = [reference(o, f"object {i}") for i, o in enumerate(top.get("objects", []), 1)]
    subjects = []
    for s, table in enumerate(top.get("subjects", []), 1):
        members = take(table, f"subject {s}", references=list).get("references", [])
        references = [
            reference(member, f"subject {s}, picture {i}", face=bool)
            for i, member in enumerate(members, 1)
        ]
        # the first picture is the face unless another says so, or it says it is none
        marks = [member.get("face") if isinstance(member, dict) else None for member in members]
        face = marks.index(True) if True in marks else None if marks[:1] == [False] else 0
        subjects.append(Subject(tuple(references), face))
    if top.get("alpha", "composite") not in ("composite", "drop"):
        problems.append(f"alpha: got '{top['alpha']}', accepted are 'composite' and 'drop'")
    if problems:
        raise LumosXError(listing(f"scene '{path}'", problems))
    return Sheet(
        name=file_name(top.get("name", path.resolve().parent.name)),
        caption=top.get("caption", ""),
        background=background,
        objects=tuple(objects),
        subjects=tuple(subjects),
        alpha=top.get("alpha", "composite"),
        exif=top.get("exif", True),
    )


def _toml(sheet: Sheet, folder: Path) -> str:
    def text(value: str) -> str:  # a JSON string is a TOML string, but for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    def entry(reference: Reference, face: bool | None = None) -> str:
        image = Path(str(reference.image)).relative_to(folder).as_posix()
        mark = "" if face is None else f", face = {str(face).lower()}"
        return f"{{ word = {text(reference.word)}, image = {text(image)}{mark} }}"

    lines = [f"name = {text(sheet.name)}", f"caption = {text(sheet.caption)}"]
    lines += [f"alpha = {text(sheet.alpha)}", f"exif = {str(sheet.exif).lower()}"]
    if sheet.background is not None:
        lines.append(f"background = {entry(sheet.background)}")
    if sheet.objects:
        lines += ["objects = [", *(f"  {entry(r)}," for r in sheet.objects), "]"]
    for subject in sheet.subjects:
        lines += ["", "[[subjects]]", "references = ["]
        for i, reference in enumerate(subject.references):
            lines.append(f"  {entry(reference, i == subject.face)},")
        lines.append("]")
    return "\n".join(lines) + "\n"


# -- both ---------------------------------------------------------------------------------------


def write_folder(sheet: Sheet, target: Path) -> None:
    """Write a prompt folder, with a scene.toml where the folder alone cannot say it all.

    Built beside its place and renamed; picture files are copied as they are. Raises LumosXError if
    there is something at `target` already, or a picture cannot be copied.
    """
    target = Path(os.path.abspath(target))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise LumosXError(f"scene: '{target}' exists already; give a new folder or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    built = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")

    def put(reference: Reference, part: str, prefix: str = "") -> Reference:
        (built / part).mkdir(parents=True, exist_ok=True)
        picture = reference.image
        suffix = ".png" if isinstance(picture, Image.Image) else picture.suffix
        stem, twin = prefix + file_name(reference.word), 2
        path = built / part / (stem + suffix)
        while path.exists():
            path, twin = built / part / f"{stem} {twin}{suffix}", twin + 1
        if isinstance(picture, Image.Image):
            savable = picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA")
            (picture if savable else picture.convert("RGB")).save(path)
        else:
            with open_regular(picture, MAX_FILE_BYTES, "image") as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        return Reference(reference.word, path)

    try:
        built.mkdir()
        caption = f"{sheet.name};{sheet.caption}"
        (built / PARTS[0]).write_text(caption, encoding="utf-8", newline="")
        written = Sheet(
            name=sheet.name,
            caption=sheet.caption,
            background=sheet.background and put(sheet.background, "background"),
            objects=tuple(put(reference, "objects") for reference in sheet.objects),
            subjects=tuple(
                Subject(
                    tuple(
                        put(reference, f"subjects/{s}", "face_" if i == subject.face else "")
                        for i, reference in enumerate(subject.references)
                    ),
                    subject.face,
                )
                for s, subject in enumerate(sheet.subjects, 1)
            ),
            alpha=sheet.alpha,
            exif=sheet.exif,
        )
        if read_folder(built, "stable", "subject").words() != written.words():
            (built / SCENE_FILE).write_text(_toml(written, built), encoding="utf-8", newline="")
        os.replace(built, target)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise


def inside(root: Path, relative: str) -> Path:
    """Return `root`/`relative`, if it stays inside `root`, links followed. Raises LumosXError."""
    path = root / relative
    try:
        held = not os.path.isabs(relative) and path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
        held = False
    if not held:
        raise LumosXError(
            f"{relative!r:.200} leads out of the folder '{root}'; copy the file into it and give "
            "a relative path"
        )
    return path


def read_text(path: Path, what: str) -> str:
    """A UTF-8 file of at most 1 MiB; an empty one is "". Raises LumosXError."""
    if path.is_file() and path.stat().st_size == 0:
        return ""
    with open_regular(path, MAX_TEXT_BYTES, what) as file:
        try:
            return file.read(MAX_TEXT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise LumosXError(f"{what} '{path}' is not UTF-8 text ({error}); save it so") from error


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    plain = (ascii(name) if _UNWRITABLE.search(name) else name for name in names[:8])
    return ", ".join(plain) + more

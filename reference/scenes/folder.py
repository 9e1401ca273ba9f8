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

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import inside, of_the_system, open_regular, read_text
from lumosx_rt.reference.scenes.images import MAX_FILE_BYTES, picture_of
from lumosx_rt.reference.scenes.scene_toml import toml_of
from lumosx_rt.reference.scenes.sheet import Order, Reference, Script, Sheet, Subject, file_name

SCENE_FILE = "scene.toml"
PARTS = ("caption.txt", "background", "objects", "subjects")
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp"} | {
    ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".svg"  # pictures, not read here
}  # fmt: skip
_FACE, _LEFT_OUT = "face_", "fullfullbody"

_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in a file name: controls, not UTF-8


def read_folder(root: Path, order: Order, script: Script) -> Sheet:
    """Return what a prompt folder says; orders and scripts as in `Scene.from_folder`.

    Raises LumosXError for a folder that is no prompt folder or reaches outside itself. Everything
    else that is wrong becomes a finding.
    """
    if not callable(order) and order not in ("stable", "listing"):
        raise BadInput(f"scene: order '{order}'; accepted are 'stable', 'listing' or a function")
    _must_be_prompt_folder(root)
    name, caption, notes = _read_caption(root)
    findings: list[str] = []
    released = order != "stable"

    def names(part: str) -> list[str]:
        return _names(root, part, order, findings)

    def reference(part: str, file: str, word: str) -> Reference:
        return Reference(word, inside(root, f"{part}/{file}"))

    def lone_word(part: str, file: str) -> str:
        cut = file.split(".")[0]
        if released:
            return cut
        word = _word(file)
        if cut != word:
            notes.append(
                f"{part}/{file}: its word is '{word}'; the released scripts cut it, '{cut}'"
            )
        return word

    files = names("background") if script == "subject" else []
    if len(files) > 1 and not released:
        findings.append(f"background/ holds {len(files)} files ({_some(files)}); keep one of them")
    parts = [("background", file) for file in files[:1]]
    if script == "subject":
        parts += [("objects", file) for file in names("objects")]
    lone = [reference(part, file, lone_word(part, file)) for part, file in parts]
    if released:
        lone = _overwritten(lone)
    background = lone.pop(0) if files else None

    subjects = []
    for folder in names("subjects"):
        part = f"subjects/{folder}"
        if not inside(root, part).is_dir():
            findings.append(f"{part} is not a folder; put each subject into a folder of its own")
            continue
        members = [_member(file, released) for file in names(part) if _LEFT_OUT not in file]
        if not released:
            notes += [f"{part}/{note}" for note in _differing(names(part))]
            members.sort(key=lambda member: not member.face)
        if script == "face":
            members = [member for member in members if member.face]
            if not members:
                findings.append(f"{part} has no face; the face script needs face_<word>.png")
        references = [reference(part, member.file, member.word) for member in members]
        faces = {references[i].image for i, member in enumerate(members) if member.face}
        if released:
            references = _overwritten(references)
        marks = [i for i, one in enumerate(references) if one.image in faces]
        subjects.append(Subject(tuple(references), marks[0] if marks else None))
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
        raise BadInput(f"scene: the folder '{root}' {what}; {expected}")
    found = sorted(_list(root))
    if not set(found) & set(PARTS):
        scenes = [
            n for n in found if (root / n / PARTS[0]).is_file() or (root / n / SCENE_FILE).is_file()
        ]
        holds = f"it holds {_some(found)}" if found else "it is empty"
        hint = f"; there are prompt folders inside it, give one of them: {_some(scenes)}"
        raise BadInput(
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
    if order == "stable":
        names = sorted((name for name in names if not of_the_system(name)), key=_natural)
    for name in names:
        if _UNWRITABLE.search(name):
            raise BadInput(f"scene: {part} holds a file with the name {ascii(name)}; rename it")
    return list(order(names)) if callable(order) else names


def _list(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise BadInput(f"scene: '{folder}' cannot be listed: {error.strerror}") from error


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sorts "2" before "10"."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _word(file: str) -> str:
    """Return the word of a file: its name without the suffix of a picture, and nothing else cut."""
    stem, dot, suffix = file.rpartition(".")
    return stem if (dot + suffix).lower() in PICTURE_SUFFIXES else file


@dataclass(frozen=True)
class _Member:
    """A file in a subject's folder."""

    file: str
    word: str
    face: bool


def _member(file: str, released: bool) -> _Member:
    """Tell a face, `face_<word>`, from an attribute, <word>; released: "face" stands anywhere."""
    if released:
        face = "face" in file
        return _Member(file, (file.partition("_")[2] if face else file).rsplit(".", 1)[0], face)
    word = _word(file)
    face = f"{word}_".lower().startswith(_FACE)  # also "face" alone, which lacks its word
    return _Member(file, word[len(_FACE) :] if face else word, face)


def _differing(files: list[str]) -> Iterator[str]:
    """Say of files in a subject's folder where the released scripts would read something else."""
    for file in files:
        if _LEFT_OUT in file:
            yield f"{file} is left out, as released, for its name holds '{_LEFT_OUT}'"
            continue
        ours, theirs = _member(file, False), _member(file, True)
        if ours != theirs:
            kind = "face" if theirs.face else "attribute"
            yield (
                f"{file}: its word is '{ours.word}'; to the released scripts it is the {kind} "
                f"'{theirs.word}'"
            )


def _overwritten(references: list[Reference]) -> list[Reference]:
    """As in the release's dictionaries: of equal words the last file, in the first one's place."""
    return list({reference.word: reference for reference in references}.values())


def write_folder(sheet: Sheet, target: Path) -> None:
    """Write a prompt folder, with a scene.toml where the folder alone cannot say it all.

    Built beside its place and renamed; picture files are copied as they are. Raises LumosXError if
    there is something at `target` already, or a picture cannot be copied.
    """
    target = Path(os.path.abspath(target))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BadInput(f"scene: '{target}' exists already; give a new folder or remove it")
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
            picture = picture_of(picture, exif=sheet.exif)  # a PNG keeps no orientation
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
            (built / SCENE_FILE).write_text(toml_of(written, built), encoding="utf-8", newline="")
        os.replace(built, target)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    plain = (ascii(name) if _UNWRITABLE.search(name) else name for name in names[:8])
    return ", ".join(plain) + more

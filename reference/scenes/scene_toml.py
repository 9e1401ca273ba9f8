"""scene.toml: what a prompt folder cannot say."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from lumosx_rt.reference.errors import BadInput, LumosXError, listing
from lumosx_rt.reference.files import inside, read_text
from lumosx_rt.reference.scenes.sheet import Reference, Sheet, Subject, file_name

# a key of many parts, which takes the parser time that grows with their square
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){16}""")
_TOML_KINDS = {str: "a string", bool: "true or false", dict: "a table", list: "an array"}


def read_toml(path: Path) -> Sheet:
    """Return what a scene.toml says. Raises one LumosXError with everything it says wrongly."""
    text = read_text(path, "scene")
    if _LONG_KEY.search(text):
        raise BadInput(f"scene '{path}' has a key of more than 16 parts; a scene needs one or two")
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"scene '{path}' is not TOML: {error or 'nested too deeply'}") from error
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
        raise BadInput(listing(f"scene '{path}'", problems))
    return Sheet(
        name=file_name(top.get("name", path.resolve().parent.name)),
        caption=top.get("caption", ""),
        background=background,
        objects=tuple(objects),
        subjects=tuple(subjects),
        alpha=top.get("alpha", "composite"),
        exif=top.get("exif", True),
    )


def toml_of(sheet: Sheet, folder: Path) -> str:
    """Write a sheet, whose pictures lie in `folder`, as the text of a scene.toml."""

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

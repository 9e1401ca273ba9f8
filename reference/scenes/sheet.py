"""What the files of a scene say, whichever they are: pictures with their words, and people."""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.scenes.images import Picture, picture_from
from lumosx_rt.reference.scenes.words import check_text

Order = Literal["stable", "listing"] | Callable[[list[str]], Iterable[str]]
Script = Literal["subject", "face"]


@dataclass(frozen=True)
class Reference:
    """One picture and the word of the caption that it shows.

    The picture may be given in any form that `picture_from` takes: a path, a PIL image, an array.
    """

    word: str
    image: Path | Image.Image

    if TYPE_CHECKING:

        def __init__(self, word: str, image: Picture) -> None: ...

    def __post_init__(self) -> None:
        check_text(self.word, "reference: its word")
        object.__setattr__(self, "image", picture_from(self.image))

    def __repr__(self) -> str:
        image = self.image
        shown = f"'{image}'" if isinstance(image, Path) else f"{image.width} x {image.height}"
        return f"Reference({self.word!r}, {shown})"


@dataclass(frozen=True)
class Subject:
    """One person: pictures in the order the model sees them (it matters, docs/spec.md#r2pe)."""

    references: tuple[Reference, ...]
    face: int | None = 0
    """Which of the pictures is the face; None where there is none."""

    if TYPE_CHECKING:

        def __init__(self, references: Iterable[Reference], face: int | None = 0) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "references", all_of(Reference, self.references, "subject"))
        if not self.references:
            object.__setattr__(self, "face", None)
            return
        if self.face is None:
            return
        try:
            object.__setattr__(self, "face", operator.index(self.face))
        except TypeError:
            raise BadInput(f"subject: face must be a place or None, got {self.face!r}") from None
        if not 0 <= self.face < len(self.references):
            raise BadInput(
                f"subject: face {self.face} is not one of its {len(self.references)} pictures; "
                "give its place, counted from 0, or None"
            )


def all_of(kind: type, given: Any, what: str) -> tuple[Any, ...]:
    """Return a list as a tuple. Raises LumosXError where it is none, or holds another kind."""
    try:
        found = () if isinstance(given, str) else tuple(given)
    except (TypeError, RuntimeError):  # no list, or an array without axes
        found = (given,)
    if isinstance(given, str) or (len(found) == 1 and found[0] is given):
        raise BadInput(f"{what}: a list of {kind.__name__} is expected, got {given!r:.80}")
    for i, one in enumerate(found, 1):
        if not isinstance(one, kind):
            raise BadInput(
                f"{what}: a list of {kind.__name__} is expected, its number {i} is {one!r:.80}"
            )
    return found


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

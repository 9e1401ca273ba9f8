"""The scene a person writes: a caption, and pictures of the people and things in it.

The same scene is a Python object, a prompt folder as the released scripts read it
(docs/spec.md#prompt-folders), or a scene.toml. It knows words and pictures only. Token ids and
latents come later. Everything that is wrong with a scene is one error, before anything slow starts.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lumosx_rt.reference.errors import BadInput, LumosXError, listing
from lumosx_rt.reference.kinds import checked, plain
from lumosx_rt.reference.scenes.folder import SCENE_FILE, read_folder, write_folder
from lumosx_rt.reference.scenes.images import Alpha, fit_image, picture_of
from lumosx_rt.reference.scenes.scene_toml import read_toml
from lumosx_rt.reference.scenes.sheet import (
    Order,
    Reference,
    Script,
    Sheet,
    Subject,
    all_of,
    file_name,
)
from lumosx_rt.reference.scenes.spelling import explain_spelling
from lumosx_rt.reference.scenes.words import check_text, clean_text

__all__ = ["Order", "Reference", "Scene", "Script", "Subject"]

MOST_PICTURES = 1000  # of any scene; an engine takes far fewer

# letters of scripts that put spaces between words, with their marks: not those of Thai, Lao,
# Tibetan, Burmese, Khmer, Chinese, Japanese
_LETTER = "[^\\W_\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # noqa: E501


@dataclass(frozen=True, repr=False)
class Scene:
    """A caption, a background, objects and people. No picture is opened until it is needed."""

    name: str
    """Names the output: one plain file name."""
    caption: str
    background: Reference | None = None
    objects: tuple[Reference, ...] = ()
    subjects: tuple[Subject, ...] = ()
    alpha: Alpha = "composite"
    """What becomes of transparent pixels: "composite" onto white, or "drop" as released."""
    exif: bool = True
    """Whether picture files are turned upright; the release does not."""
    findings: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What is wrong with the files it was read from; `problems` reports it."""
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What is odd about them; `problems` warns of it."""

    def __post_init__(self) -> None:
        check_text(self.name, "scene: its name")
        check_text(self.caption, "scene: its caption")
        if not isinstance(self.background, Reference | None):
            raise BadInput(
                f"scene: its background must be a Reference, got {self.background!r:.80}"
            )
        for what, kind in (("objects", Reference), ("subjects", Subject)):
            found = all_of(kind, getattr(self, what), f"scene: its {what}")
            object.__setattr__(self, what, found)
        if self.name != file_name(self.name):
            raise BadInput(
                f"scene: '{self.name}' does not name a file; give a short name without slashes, "
                f"such as '{file_name(self.name)}'"
            )
        plain(self.exif, bool, "scene: its exif")
        if not isinstance(self.alpha, str) or self.alpha not in get_args(Alpha):
            raise BadInput(f"alpha: got '{self.alpha}', accepted are 'composite' and 'drop'")
        if len(self.references) > MOST_PICTURES:
            raise BadInput(
                f"scene: {len(self.references)} pictures, accepted are at most {MOST_PICTURES}"
            )

    @classmethod
    def from_prompt(cls, prompt: str, **parts: Any) -> "Scene":
        """Make a scene of a plain text, and pictures as in `Scene`; its first words name it."""
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadInput(f"scene: a prompt must be text that is not empty, got {prompt!r:.80}")
        return cls(file_name(" ".join(prompt.split()[:6])[:60]), prompt, **parts)

    def __repr__(self) -> str:
        def words(references: Sequence[Reference]) -> str:
            return " + ".join(reference.word for reference in references) or "nothing"

        shown = [repr(self.caption if len(self.caption) <= 60 else self.caption[:57] + "...")]
        shown += [f"background {self.background.word}"] if self.background else []
        shown += [f"objects {words(self.objects)}"] if self.objects else []
        shown += [f"subject {words(subject.references)}" for subject in self.subjects]
        return f"Scene {self.name!r}: {'; '.join(shown)}"

    # -- what it holds --------------------------------------------------------------------------

    @property
    def references(self) -> tuple[Reference, ...]:
        """All pictures in the model's order: background, objects, then subject by subject."""
        return tuple(reference for _, reference in self._places())

    @property
    def lone(self) -> int:
        """How many pictures stand alone: the background and the objects."""
        return (self.background is not None) + len(self.objects)

    @property
    def subject_sizes(self) -> tuple[int, ...]:
        return tuple(len(subject.references) for subject in self.subjects)

    @cached_property
    def clean_caption(self) -> str:
        """The caption as it is compared and tokenized (docs/spec.md#text)."""
        return clean_text(self.caption)

    @cached_property
    def clean_words(self) -> tuple[str, ...]:
        """The word of every picture, in the model's order, as it is compared and tokenized."""
        return tuple(clean_text(reference.word) for reference in self.references)

    def fitted(self, height: int, width: int) -> NDArray[np.uint8]:
        """Return its pictures as the model is shown them: uint8 [references, height, width, 3].

        height and width in pixels (docs/spec.md#picture-preparation). Raises LumosXError for a
        picture that cannot be read.
        """
        frames = np.zeros((len(self.references), height, width, 3), np.uint8)
        for frame, reference in zip(frames, self.references, strict=True):
            picture = picture_of(reference.image, exif=self.exif)
            frame[:] = fit_image(picture, height, width, self.alpha)
        return frames

    def _places(self) -> Iterator[tuple[str, Reference]]:
        """Yield every picture with its place in words, in the model's order."""
        if self.background is not None:
            yield "background", self.background
        for i, reference in enumerate(self.objects, 1):
            yield f"object {i}", reference
        for s, subject in enumerate(self.subjects, 1):
            for i, reference in enumerate(subject.references, 1):
                yield f"subject {s}, picture {i}", reference

    # -- what is wrong with it ------------------------------------------------------------------

    def check(self, max_references: int | None = None, max_members: int | None = None) -> list[str]:
        """Raise one LumosXError that holds every error of the scene; return its warnings."""
        errors, warnings = self.problems(max_references, max_members)
        if errors:
            raise BadInput(listing(f"scene '{self.name}'", errors))
        return warnings

    def problems(
        self, max_references: int | None = None, max_members: int | None = None
    ) -> tuple[list[str], list[str]]:
        """Return (errors, warnings), each with its remedy. Opens and decodes every picture.

        max_references: pictures in all; max_members: pictures of one subject.
        """
        errors, warnings = self.said_problems(max_references, max_members)
        if max_references is None or len(self.references) <= max_references:
            errors += [problem for _, problem in self.opened() if isinstance(problem, str)]
        return errors, warnings

    def said_problems(
        self, max_references: int | None = None, max_members: int | None = None
    ) -> tuple[list[str], list[str]]:
        """Return the `problems` of what the scene says; no picture is opened."""
        errors, warnings = list(self.findings), list(self.notes)
        caption, count = self.clean_caption, len(self.references)
        if not caption:
            errors.append("there is no caption; write one that holds every word into caption.txt")
        if max_references is not None and count > max_references:
            errors.append(f"{count} pictures, accepted are at most {max_references}; take some out")
        for s, size in enumerate(self.subject_sizes, 1):
            if size == 0:
                errors.append(f"subject {s} has no picture; add face_<word>.png, or take it out")
            if max_members is not None and size > max_members:
                errors.append(
                    f"subject {s} has {size} pictures, accepted are at most {max_members}; "
                    "take some out"
                )
        for (place, reference), word in zip(self._places(), self.clean_words, strict=True):
            where = f"{place} ({reference.image})" if isinstance(reference.image, Path) else place
            if not word:
                errors.append(f"{where} has an empty word; name it after what it shows")
            elif caption and word not in caption:
                errors.append(f"{where}: {_not_in_caption(word, caption)}")
            elif caption and not _stands_in(word, caption):
                warnings.append(
                    f"{where}: '{word}' stands in the caption only inside a longer word, where it "
                    "may bind nothing"
                )
        return errors + self._doubled_words(), warnings + self._shared_words()

    def opened(self) -> Iterator[tuple[int, Image.Image | str]]:
        """Decode one picture at a time: yields (index, picture), or (index, what is wrong)."""
        for i, (place, reference) in enumerate(self._places()):
            try:
                yield i, picture_of(reference.image, exif=self.exif)
            except LumosXError as error:
                yield i, f"{place}: {error}"

    def _doubled_words(self) -> list[str]:
        """Count two pictures for one word: only one of them can be meant."""
        parts = [("background and objects", self.clean_words[: self.lone])]
        parts += [(f"subject {s}", words) for s, words in enumerate(self._subject_words(), 1)]
        problems = []
        for part, found in parts:
            words = [word for word in found if word]
            problems += [
                f"{part}: {words.count(word)} pictures for the word '{word}'; keep one of them"
                for word in dict.fromkeys(words)
                if words.count(word) > 1
            ]
        return problems

    def _shared_words(self) -> list[str]:
        """Warnings for words that fall on more than one subject (docs/spec.md#word-weights)."""
        groups = [set(words) - {""} for words in self._subject_words()]
        if len(groups) < 2:
            return []
        warnings = [
            f"every subject has the word '{word}': its weights cancel, so this word tells nobody "
            "apart; groups and other words still do; best is a word of its own for each subject"
            for word in sorted(set.intersection(*groups))
        ]
        for s, words in enumerate(groups):
            others = set().union(*groups[:s], *groups[s + 1 :])
            warnings += [
                f"subject {s + 1}: its word '{word}' is a part of another subject's '{other}', so "
                "it falls on both; choose words that do not hold each other"
                for word in sorted(words)
                for other in sorted(others)
                if word != other and _stands_in(word, other)
            ]
        return warnings

    def _subject_words(self) -> Iterator[tuple[str, ...]]:
        """Yield the cleaned words of each subject."""
        start = self.lone
        for size in self.subject_sizes:
            yield self.clean_words[start : start + size]
            start += size

    # -- its files ------------------------------------------------------------------------------

    @classmethod
    @checked
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        order: Order = "stable",
        script: Script = "subject",
        alpha: Alpha = "composite",
        exif: bool = True,
    ) -> "Scene":
        """Read a prompt folder (docs/spec.md#prompt-folders).

        order: "stable" (by name, numbers in natural order, the face first; hidden files ignored),
        "listing" (as the file system lists them, as released; of equal words in one part the later
        file takes the earlier one's place), or a function that orders each folder's names,
        otherwise as released. script: "subject", or "face" for faces alone. Raises LumosXError for
        a folder that is no prompt folder or reaches outside itself; `problems` tells the rest.
        """
        if script not in ("subject", "face"):
            raise BadInput(f"script: got '{script}', accepted are 'subject' and 'face'")
        return cls._of(read_folder(Path(path), order, script), alpha=alpha, exif=exif)

    @classmethod
    @checked
    def from_toml(cls, path: str | os.PathLike[str]) -> "Scene":
        """Read a scene.toml; its pictures are in its folder.

        Entries: name, caption, alpha, exif, background = {word, image}, objects = [{word, image}],
        and [[subjects]] with references = [{word, image, face}]; a subject's first picture is its
        face unless `face` says otherwise. Raises one LumosXError for all that it says wrongly.
        """
        return cls._of(read_toml(Path(path)))

    @classmethod
    @checked
    def load(
        cls, path: str | os.PathLike[str], *, order: Order = "stable", script: Script = "subject"
    ) -> "Scene":
        """Read a prompt folder, a folder with a scene.toml (which then counts), or a .toml file.

        Raises LumosXError as the readers do, and if an order or a script other than the default is
        asked of a scene.toml, which states its own.
        """
        path = Path(path)
        file = path / SCENE_FILE if path.is_dir() else path
        if not (file.is_file() if path.is_dir() else file.suffix == ".toml"):
            return cls.from_folder(path, order=order, script=script)
        if (order, script) != ("stable", "subject"):
            raise BadInput(
                f"scene: '{file}' states its own order; an order or a script is for prompt folders "
                "(Scene.from_folder)"
            )
        return cls.from_toml(file)

    @checked
    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it as a prompt folder that `load` reads back as the same scene; return its path.

        Where file names cannot say its words or its order, a scene.toml is written too. Raises
        LumosXError if the folder exists already or a picture cannot be copied.
        """
        entries = {f.name: getattr(self, f.name) for f in fields(Sheet)}
        write_folder(Sheet(**entries), Path(folder))
        return Path(folder)

    @classmethod
    def _of(cls, sheet: Sheet, **policy: Any) -> "Scene":
        entries = {f.name: getattr(sheet, f.name) for f in fields(Sheet)}
        return replace(cls(**entries), **policy)


def scene_of(given: Any) -> Scene:
    """Take a scene as people give it: a `Scene`, a path, or a prompt as plain text.

    A text is a prompt if it has a space in it and nothing lies there, nor a folder that it could
    lie in. Raises LumosXError.
    """
    if isinstance(given, Scene):
        return given
    if isinstance(given, str) and re.search(r"\s", given.strip()):
        path = Path(given) if "\0" not in given else None
        try:
            lies = path is not None and (
                path.exists() or (path.parent != Path(".") and path.parent.is_dir())
            )
        except OSError:  # longer than a path can be
            lies = False
        return Scene.load(given) if lies else Scene.from_prompt(given)
    if isinstance(given, str | os.PathLike):
        return Scene.load(given)
    raise BadInput(
        f"scene: got {given!r:.60}, accepted are an rt.Scene, the path of a prompt folder or a "
        "scene.toml, or a prompt as plain text"
    )


def _stands_in(word: str, text: str) -> bool:
    """Tell whether `word` stands in `text` as whole words."""
    return bool(re.search(f"(?<!{_LETTER}){re.escape(word)}(?!{_LETTER})", text))


def _not_in_caption(word: str, caption: str) -> str:
    """Why nothing would bind the picture, with a guess at what was meant."""
    spoken = word.replace("_", " ")
    hint = "write it into the caption, or rename the picture after a word that is there"
    if spoken in caption:
        hint = f"'{spoken}' is; file names keep their underscores, so rename the picture"
    elif (at := caption.lower().find(word.lower())) >= 0:
        hint = f"'{caption[at : at + len(word)]}' is, and case matters; rename the picture"
    elif odd := explain_spelling(word, caption):
        hint = f"it seems to be, but {odd}; write both alike"
    return f"'{word}' is not in the caption, so nothing would bind it; {hint}"

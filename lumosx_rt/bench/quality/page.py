"""Some scenes of a benchmark as one picture: what was asked for, what was made, what was seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lumosx_rt.bench.quality.suite import Result, read_clip
from lumosx_rt.drawing.typesetting import (
    ALARM,
    FAINT,
    MARGIN,
    PAPER,
    beside,
    centred,
    framed,
    grid,
    paragraph,
    stack,
    text_line,
    text_width,
)
from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.scenes import scene_of
from lumosx_rt.reference.world.story import Story

SHOWN = 12  # scenes on a page
ZOOM = 2
RIGHT, WRONG, NEUTRAL = "#2e7d32", ALARM, "#64748b"
Mark = tuple[str, str]
"""What a label says, and its colour."""


def draw_page(results: Sequence[Result], stories: Sequence[Story], folder: Path) -> Image.Image:
    """Up to SHOWN scenes with their references, three frames of target and clip, and marks.

    folder: of the run, which holds the clips. Half of the scenes have a miss, if there are such.
    """
    told = {story.name: story for story in stories}
    scenes = [
        _scene(told[result.name], result, read_clip(folder, result.name))
        for result in choose(results)
    ]
    width = max(scene.width for scene in scenes)
    rule = Image.new("RGB", (width, 2), "#d5d9e0")
    parts = [part for scene in scenes for part in (rule, scene)]
    return framed(stack([_heading(results, len(scenes)), *parts], 14))


def choose(results: Sequence[Result], count: int = SHOWN) -> list[Result]:
    """Scenes with and without misses, half of each where there are enough, in their order."""
    missed = [result for result in results if _missed(result)]
    right = [result for result in results if not _missed(result)]
    misses = min(len(missed), max(count // 2, count - len(right)))
    shown = _spread(missed, misses) + _spread(right, min(len(right), count - misses))
    return [result for result in results if result in shown]


def _missed(result: Result) -> bool:
    """Tell whether a face or an attribute is not where it belongs."""
    return any(hits < cases for hits, cases in (result.tally["identity"], result.tally["binding"]))


def _spread(results: Sequence[Result], count: int) -> list[Result]:
    return [results[i * len(results) // count] for i in range(count)]


def _heading(results: Sequence[Result], shown: int) -> Image.Image:
    missed = sum(map(_missed, results))
    text = f"{shown} of {len(results)} scenes; {missed} of all have a wrong face or attribute"
    return text_line(text, 20)


def _scene(told: Story, result: Result, clip: NDArray[np.uint8]) -> Image.Image:
    target = draw.frames_of(told)
    clips = [
        stack([text_line(title, 14, FAINT), _film(frames)], 3)
        for title, frames in (("target", target[: len(clip)]), ("generated", clip))
    ]
    body = beside([_references(told), stack(clips, 8), _marks(told, result.seen)], MARGIN)
    title = f"{told.name}: {told.caption}"
    return stack([paragraph(title, 16, body.width), body], 10)


def _film(frames: NDArray[np.uint8]) -> Image.Image:
    """Return the first, the middle and the last frame, of a single one it alone."""
    size = draw.WIDTH * ZOOM, draw.HEIGHT * ZOOM
    shown = sorted({0, len(frames) // 2, len(frames) - 1})
    pictures = [Image.fromarray(frames[i]).resize(size, Image.Resampling.NEAREST) for i in shown]
    return beside(pictures, 6)


def _references(told: Story) -> Image.Image:
    """References in the model's order, under their words and the group they belong to."""
    scene = scene_of(told)
    groups = ["alone"] * scene.lone
    groups += [f"person {s}" for s, n in enumerate(scene.subject_sizes, 1) for _ in range(n)]
    pictures = scene.fitted(draw.HEIGHT, draw.WIDTH)
    cells = [
        stack([_framed_picture(picture), text_line(f"{reference.word}, {group}", 13)], 2)
        for picture, reference, group in zip(pictures, scene.references, groups, strict=True)
    ]
    return stack([text_line("references", 14, FAINT), grid(cells, 4)], 3)


def _framed_picture(picture: NDArray[np.uint8]) -> Image.Image:
    cell = Image.new("RGB", (picture.shape[1] + 2, picture.shape[0] + 2), "#d5d9e0")
    cell.paste(Image.fromarray(picture), (1, 1))
    return cell


def _marks(told: Story, seen: dict[str, Any]) -> Image.Image:
    """Return what was seen of each person, left to right, and of the rest."""
    rows = [
        (f"{place.word} wanted", _person_marks(person))
        for place, person in zip(told.people, seen["people"], strict=True)
    ]
    rest = [("backdrop", RIGHT if seen["backdrop"] else WRONG)]
    if seen["thing"] is not None:
        rest.append(("object", RIGHT if seen["thing"] else WRONG))
    rest.append((f"{seen['psnr']:.1f} dB", NEUTRAL))
    parts = [
        stack([text_line(title, 15), beside([_chip(*mark) for mark in marks], 5)], 4)
        for title, marks in [*rows, ("scene", rest)]
    ]
    return stack([text_line("seen, left to right", 14, FAINT), *parts], 10)


def _person_marks(person: dict[str, Any]) -> list[Mark]:
    def mark(text: str, right: bool) -> Mark:
        return text, RIGHT if right else WRONG

    face = {"own": "face", "other": "face of another", "distractor": "face unknown"}
    look = {"bound": "", "swapped": " of another", "missing": " missing", "distractor": " unknown"}
    marks = [mark(face[person["face"]], person["face"] == "own")]
    marks += [
        mark(f"{a['kind']}{look[a['seen']]}", a["seen"] == "bound") for a in person["attributes"]
    ]
    if person["extra"]:
        marks.append(mark(f"{person['extra']} too many", False))
    motion = {"left": "walks left", "right": "walks right", "jump": "jumps", "still": "still"}
    return [*marks, mark(motion[person["motion"]], person["motion_right"])]


def _chip(text: str, colour: str) -> Image.Image:
    chip = Image.new("RGB", (text_width(text, 14) + 14, 24), PAPER)
    pen = ImageDraw.Draw(chip)
    pen.rounded_rectangle((0, 0, chip.width - 1, 23), 6, fill=colour)
    centred(pen, (0, 0, chip.width, 24), text, 14, PAPER)
    return chip

"""Who and what is seen in a clip of the drawn world, by comparison with drawings.

A clip is compared with what a renderer would have drawn, candidate by candidate, over the same
pixels; the candidate with the smallest squared error is what is seen. Candidates are
the truth, what else is in the scene, and distractors that training never showed:

    a place's motion     how its face moves: every motion, shifted by a few pixels
    a place's face       its person's, the other people's, FACES_BESIDE others
    its attributes       its person's, the other people's of that kind, LOOKS_BESIDE others, none
    thing and backdrop   the scene's, and LOOKS_BESIDE others

An attribute is judged on whoever is seen in the place: it is *bound* if it is that person's, and
*swapped* if it is another's. So a clip in which two people changed places altogether has both
misplaced, and everything bound.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.looks import (
    BACKDROPS,
    FACES,
    KINDS,
    LOOKS,
    THINGS,
    Face,
    Kind,
    Look,
    Space,
    Thing,
)
from lumosx_rt.reference.world.story import MOTIONS, Motion, Person, Story

FACES_BESIDE = 20
LOOKS_BESIDE = 8
ACROSS, DOWN = (-6, -4, -2, 0, 2, 4, 6), (-4, -2, 0, 2, 4)  # pixels, where a person is looked for
SEARCHED = 5  # frames, evenly spaced, by which motion and shift are found


Pixels = NDArray[np.float32]


def _covered(sprites: Iterable[Pixels]) -> NDArray[np.bool_]:
    """The pixels that any of some sprites covers."""
    return np.asarray(np.any([sprite[..., 3] > 0.5 for sprite in sprites], axis=0))


_HEADS = _covered(draw.face_sprite(Face(0, 1, 1, 1, style)) for style in range(3))
_OUTLINES = {
    kind: _covered(draw.look_sprite(Look(kind, shape, 0, (0, 0))) for shape in range(3))
    for kind in KINDS
}
_THINGS = _covered(draw.thing_sprite(Thing(shape, (0, 1))) for shape in range(3))
_WORN: dict[Kind, NDArray[np.bool_]] = {
    "bag": _OUTLINES["bag"],
    "hat": _OUTLINES["hat"],
    "shirt": _OUTLINES["shirt"] & ~_HEADS & ~_OUTLINES["bag"],
}
"""Pixels on which attributes of a kind are told apart: nothing else lies over them."""
_HEAD = _HEADS & ~_OUTLINES["hat"]

FaceSeen = Literal["own", "other", "distractor"]
LookSeen = Literal["bound", "swapped", "missing", "distractor"]


@dataclass(frozen=True)
class AttributeSeen:
    kind: Kind
    seen: LookSeen


@dataclass(frozen=True)
class PersonSeen:
    """What is seen where one person should be."""

    face: FaceSeen
    motion: Motion
    moved: bool
    """Whether the person should move."""
    motion_right: bool
    attributes: tuple[AttributeSeen, ...]
    """One for each attribute of whoever is seen there."""
    extra: int
    """Attributes of kinds that this person does not have."""


@dataclass(frozen=True)
class Seen:
    """What is seen in a clip."""

    people: tuple[PersonSeen, ...]
    thing: bool | None
    """Whether the object is the right one; None if there is none."""
    backdrop: bool
    backdrop_psnr: float
    psnr: float
    ssim: float


def judge(frames: NDArray[np.uint8], told: Story) -> Seen:
    """Looks at a clip, uint8 [frames, height, width, 3], for what a story shows.

    A single frame is a story's first one, in which nobody is seen to move. Raises LumosXError for
    a clip of another size than the story's.
    """
    target = draw.frames_of(told)
    if len(frames) == 1:
        target = target[:1]
    if frames.shape != target.shape or frames.dtype != np.uint8:
        raise LumosXError(
            f"judge: a clip of the drawn world is uint8 {list(target.shape)}, got {frames.dtype} "
            f"{list(frames.shape)}; generate it with {draw.FRAMES} frames, or one, of "
            f"{draw.HEIGHT} x {draw.WIDTH} pixels"
        )
    clip = frames.astype(np.float32) / np.float32(255)
    people = tuple(_person(clip, told, person) for person in told.people)
    error = (clip - target.astype(np.float32) / 255) ** 2
    behind = _behind(told)
    return Seen(
        people=people,
        thing=_thing(clip, told),
        backdrop=_backdrop(clip, told, behind),
        backdrop_psnr=psnr(float(error[:, behind].mean())),
        psnr=psnr(float(error.mean())),
        ssim=ssim(frames, target),
    )


# -- people -------------------------------------------------------------------------------------


def _person(clip: Pixels, told: Story, place: Person) -> PersonSeen:
    chance = _chance(told, f"person {place.word}")
    others = [person for person in told.people if person is not place]
    known = [place.face, *(person.face for person in others)]
    faces = [*known, *_beside(FACES, FACES_BESIDE, chance, known)]
    motion, across, down = _found(clip, told, place, faces)
    view = _View(clip, told, place, motion, across, down)
    best = view.best([_bare(face) for face in faces], _HEAD)
    who = place if best == 0 or best > len(others) else others[best - 1]
    face_seen: FaceSeen = "own" if best == 0 else "other" if best <= len(others) else "distractor"

    attributes, extra = [], 0
    bare = _bare(faces[best])
    for kind in KINDS:
        own = who.look(kind)
        seen = _look(view, bare, kind, own, who, told, chance)
        if own is None:
            extra += seen != "missing"
        else:
            attributes.append(AttributeSeen(kind, seen))
    moved = who.motion != "still" and len(clip) > 1
    return PersonSeen(face_seen, motion, moved, motion == who.motion, tuple(attributes), extra)


def _look(
    view: "_View",
    bare: Pixels,
    kind: Kind,
    own: Look | None,
    who: Person,
    told: Story,
    chance: random.Random,
) -> LookSeen:
    """Which look of a kind is seen on whoever stands in a place."""
    theirs = [look for p in told.people if p is not who and (look := p.look(kind)) is not None]
    known = ([] if own is None else [own]) + theirs
    looks = [*known, *_beside(LOOKS[kind], LOOKS_BESIDE, chance, known)]
    pictures = [bare, *(draw.over(draw.look_sprite(look), bare) for look in looks)]
    best = view.best(pictures, _WORN[kind]) - 1
    if best < 0:
        return "missing"
    if own is not None and best == 0:
        return "bound"
    return "swapped" if best < len(known) else "distractor"


def _found(
    clip: Pixels, told: Story, place: Person, faces: Sequence[Face]
) -> tuple[Motion, int, int]:
    """The motion and the shift under which some face fits best."""
    shifts = sorted(((x, y) for x in ACROSS for y in DOWN), key=lambda s: abs(s[0]) + abs(s[1]))
    times = np.linspace(0, len(clip) - 1, SEARCHED).round().astype(int)
    scenery = draw.scenery_of(told)
    heads = np.stack([_bare(face)[_HEAD] for face in faces])
    best, found = np.inf, (MOTIONS[0], 0, 0)
    for motion in MOTIONS:
        steps = [draw.offset(motion, int(frame)) for frame in times]
        boxes = np.array([[(x + dx, y + dy) for x, y in steps] for dx, dy in shifts])
        seen, behind = _heads_seen(clip, scenery, place.centre, boxes, times)
        for error, (across, down) in zip(_errors(seen, behind, heads), shifts, strict=True):
            if error.min() < best - 1e-9:
                best, found = error.min(), (motion, across, down)
    return found


def _heads_seen(
    clip: Pixels,
    scenery: Pixels,
    centre: int,
    boxes: NDArray[np.int64],
    times: NDArray[np.int64],
) -> tuple[Pixels, Pixels]:
    """The pixels of a head on the clip, and on the scenery: [shifts, times, pixels, 3].

    boxes: pixels right of and below the place, [shifts, times, 2].
    """
    rows, columns = np.nonzero(_HEAD)
    left = centre - draw.SPRITE // 2
    x = np.clip(boxes[..., :1] + columns + left, 0, draw.WIDTH - 1)
    y = np.clip(boxes[..., 1:] + rows, 0, draw.HEIGHT - 1)
    return clip[times[None, :, None], y, x], scenery[y, x]


def _errors(seen: Pixels, behind: Pixels, sprites: Pixels) -> NDArray[np.float64]:
    """Mean squared error of every sprite over the scenery: [views, sprites].

    seen, behind: [views, times, pixels, 3]; sprites: [sprites, pixels, 4]. With alpha a, colour
    c and d = seen - behind, it is the mean of (d + a b - a c)^2, multiplied out so that times are
    summed before sprites are looked at.
    """
    b = behind.astype(np.float64)
    d = seen - b
    views, times = d.shape[:2]
    a = sprites[..., 3].astype(np.float64)
    ac = a[..., None] * sprites[..., :3]
    found = np.square(d).sum((1, 2, 3))[:, None] + times * np.square(ac).sum((1, 2))
    found += np.square(b).sum((1, 3)) @ np.square(a).T + 2 * (b * d).sum((1, 3)) @ a.T
    for x, weights in ((d, ac), (b, a[..., None] * ac)):
        found -= 2 * x.sum(1).reshape(views, -1) @ weights.reshape(len(sprites), -1).T
    return np.asarray(found / d[0].size)


class _View:
    """A window that follows a person, on the clip and on the scenery behind it."""

    def __init__(
        self,
        clip: Pixels,
        told: Story,
        place: Person,
        motion: Motion,
        across: int,
        down: int,
    ) -> None:
        scenery = draw.scenery_of(told)
        half = draw.SPRITE // 2
        seen, behind = [], []
        for frame in range(len(clip)):
            x, y = draw.offset(motion, frame)
            box = (place.centre + x + across - half, y + down)
            seen.append(_window(clip[frame], *box))
            behind.append(_window(scenery, *box))
        self.seen, self.behind = np.stack(seen), np.stack(behind)

    def best(self, sprites: Sequence[Pixels], where: NDArray[np.bool_]) -> int:
        """The sprite that fits best over the scenery, on the pixels `where`."""
        pixels = np.stack([sprite[where] for sprite in sprites])
        return int(_errors(self.seen[None, :, where], self.behind[None, :, where], pixels).argmin())


@lru_cache(maxsize=4096)
def _bare(face: Face) -> Pixels:
    """A person with a face, and nothing else."""
    return draw.over(draw.face_sprite(face), draw.body_sprite())


def _window(picture: Pixels, left: int, top: int) -> Pixels:
    """A sprite's box of a picture; beyond the edges, the nearest pixels."""
    rows = np.clip(np.arange(draw.HEIGHT) + top, 0, picture.shape[0] - 1)
    columns = np.clip(np.arange(draw.SPRITE) + left, 0, picture.shape[1] - 1)
    return picture[rows[:, None], columns]


# -- everything else ----------------------------------------------------------------------------


def _thing(clip: Pixels, told: Story) -> bool | None:
    if told.thing is None:
        return None
    chance = _chance(told, "thing")
    things = [told.thing, *_beside(THINGS, LOOKS_BESIDE, chance, [told.thing])]
    left = told.thing_centre - draw.SPRITE // 2
    seen = np.stack([_window(frame, left, 0) for frame in clip])[:, _THINGS]
    behind = _window(draw.backdrop_picture(told.backdrop), left, 0)[_THINGS]
    errors = []
    for thing in things:
        part = draw.thing_sprite(thing)[_THINGS]
        expected = behind + part[:, 3:] * (part[:, :3] - behind)
        errors.append(float(np.square(seen - expected).mean(dtype=np.float64)))
    return int(np.argmin(errors)) == 0


def _backdrop(clip: Pixels, told: Story, behind: NDArray[np.bool_]) -> bool:
    chance = _chance(told, "backdrop")
    others = _beside(BACKDROPS, LOOKS_BESIDE, chance, [told.backdrop])
    seen = clip[:, behind]
    errors = [
        float(np.square(seen - draw.backdrop_picture(b)[behind]).mean(dtype=np.float64))
        for b in [told.backdrop, *others]
    ]
    return int(np.argmin(errors)) == 0


def _chance(told: Story, what: str) -> random.Random:
    return random.Random(f"{told.name} {what}")


T = TypeVar("T")


def _beside(space: Space[T], count: int, chance: random.Random, known: Sequence[T]) -> list[T]:
    """Distractors: held-out looks that are none of the known ones."""
    found: list[T] = []
    while len(found) < count:
        one = space[chance.choice(space.held_out)]
        if one not in known and one not in found:
            found.append(one)
    return found


def _behind(told: Story) -> NDArray[np.bool_]:
    """Pixels where nobody and nothing ever is: bool [height, width]."""
    free = np.ones((draw.HEIGHT, draw.WIDTH), np.bool_)
    for person in told.people:
        for frame in range(draw.FRAMES):
            across, down = draw.offset(person.motion, frame)
            free &= ~_covers(draw.person_sprite(person), person.centre + across, down)
    if told.thing is not None:
        free &= ~_covers(draw.thing_sprite(told.thing), told.thing_centre)
    return free


def _covers(sprite: Pixels, centre: int, down: int = 0) -> NDArray[np.bool_]:
    """The pixels of a picture that a pasted sprite changes: bool [height, width]."""
    picture = np.zeros((draw.HEIGHT, draw.WIDTH, 3), np.float32)
    draw.paste(picture, np.where(np.arange(4) < 3, 1.0, sprite).astype(np.float32), centre, down)
    return picture[..., 0] > 0


def psnr(error: float) -> float:
    """Mean squared error of values in [0, 1], in decibels; at most 99."""
    return float(min(-10 * np.log10(max(error, 1e-12)), 99.0))


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Structural similarity of two clips, uint8 [frames, rows, columns, 3].

    Windows of 7 x 7 pixels with equal weights, constants 0.01 and 0.03 (Wang et al. 2004).
    """
    x, y = (clip.astype(np.float64) / 255 for clip in (a, b))

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        for axis in (1, 2):
            values = np.lib.stride_tricks.sliding_window_view(values, 7, axis=axis).mean(-1)
        return np.asarray(values)

    mx, my = mean(x), mean(y)
    n = 49 / 48  # unbiased
    vx, vy, cov = (
        n * (mean(x * x) - mx * mx),
        n * (mean(y * y) - my * my),
        n * (mean(x * y) - mx * my),
    )
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(found.mean())

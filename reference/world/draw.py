"""Looks and stories as pixels.

Everything that stands is drawn from sprites: RGBA float32 [HEIGHT, SPRITE, 4], the full
height of the picture, with a mask of soft edges (four by four samples a pixel). A person fills
four rows of tokens: hat, head, shirt, legs with a bag beside them. Nothing is smaller than about
six pixels, so that a tiny VAE can show it.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lumosx_rt.reference.world.looks import PALETTE, Backdrop, Face, Kind, Look, Thing
from lumosx_rt.reference.world.story import Motion, Person, Story

HEIGHT, WIDTH, FRAMES = 64, 144, 9
SPRITE = 40  # width of a sprite; its middle column is the person's centre
SAMPLES = 4
CLOTH, LEGS = (0.62, 0.62, 0.62), (0.25, 0.25, 0.28)  # of who has no shirt; of everybody

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

_y, _x = np.meshgrid(
    (np.arange(HEIGHT * SAMPLES) + 0.5) / SAMPLES,
    (np.arange(SPRITE * SAMPLES) + 0.5) / SAMPLES - SPRITE / 2,
    indexing="ij",
)


# -- sprites ------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def face_sprite(face: Face) -> Pixels:
    """A head: hair above, glasses, skin, a chin of another colour."""
    head = _ellipse(0, 25, 11, 11)
    hair = _y < 20
    if face.style == 1:
        hair = hair | ((abs(_x) > 8) & (_y < 31))
    elif face.style == 2:
        head = head | _box(-11, 11, 14, 19)
        hair = _y < 20.5 - 0.25 * _x
    glasses = (_box(-10, -2, 20.5, 27) | _box(2, 10, 20.5, 27)) & head
    return _layers(
        (head, PALETTE[face.skin]),
        (head & (_y >= 29), PALETTE[face.chin]),
        (glasses, PALETTE[face.glasses]),
        (head & hair, PALETTE[face.hair]),
    )


@lru_cache(maxsize=4096)
def look_sprite(look: Look) -> Pixels:
    """One attribute, where it sits on a person."""
    mask, middle_x, middle_y, half = _OUTLINES[look.kind](look.shape)
    second = {
        0: np.zeros_like(mask),
        1: _y >= middle_y,
        2: _x >= middle_x,
        3: abs(_y - middle_y) < half,
    }[look.pattern]
    first, other = (PALETTE[colour] for colour in look.colours)
    return _layers((mask, first), (mask & second, other))


@lru_cache(maxsize=4096)
def thing_sprite(thing: Thing) -> Pixels:
    """A ball, a box or a tree, on the ground."""
    first, second = (PALETTE[colour] for colour in thing.colours)
    if thing.shape == 0:
        ball = _ellipse(0, 54, 8, 8)
        return _layers((ball, first), (ball & (_y >= 54), second))
    if thing.shape == 1:
        return _layers((_box(-8, 8, 46, 62), first), (_box(-3, 3, 46, 62), second))
    return _layers((_box(-3, 3, 50, 62), second), (_triangle(0, 36, 9, 54), first))


def person_sprite(person: Person, without: tuple[Kind, ...] = ()) -> Pixels:
    """A whole person; `without` leaves attributes out."""
    looks = {a.look.kind: a.look for a in person.attributes if a.look.kind not in without}
    sprite = body_sprite()
    for part in (
        look_sprite(looks["shirt"]) if "shirt" in looks else None,
        face_sprite(person.face),
        look_sprite(looks["hat"]) if "hat" in looks else None,
        look_sprite(looks["bag"]) if "bag" in looks else None,
    ):
        if part is not None:
            sprite = over(sprite, part)
    return sprite


@lru_cache(maxsize=1)
def body_sprite() -> Pixels:
    """What everybody has: legs, and a grey body."""
    return _layers((_box(-8, 8, 48, 62), LEGS), (_box(-10, 10, 33, 50), CLOTH))


# -- pictures -----------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def backdrop_picture(backdrop: Backdrop) -> Pixels:
    """What is behind everything: float32 [HEIGHT, WIDTH, 3] in [0, 1]."""
    y = np.arange(HEIGHT)[:, None] + 0.5
    x = np.arange(WIDTH)[None] + 0.5
    horizon = (24.0, 36.0, 48.0)[backdrop.horizon] + np.zeros_like(x)
    if backdrop.pattern == 2:
        horizon = horizon - 8 * np.cos(x / WIDTH * 4 * np.pi)
    ground = np.clip(y - horizon + 0.5, 0, 1)[..., None]
    picture = ground * np.array(PALETTE[backdrop.ground]) + (1 - ground) * np.array(
        PALETTE[backdrop.sky]
    )
    if backdrop.pattern == 1:
        picture = np.where(y[..., None] >= 56, 0.6 * picture, picture)
    return picture.astype(np.float32)


def paper(sprite: Pixels) -> NDArray[np.uint8]:
    """A sprite as a reference picture, in the middle of white paper: uint8 [HEIGHT, WIDTH, 3]."""
    picture = np.ones((HEIGHT, WIDTH, 3), np.float32)
    paste(picture, sprite, WIDTH // 2)
    return to_uint8(picture)


def frames_of(story: Story, frames: int = FRAMES) -> NDArray[np.uint8]:
    """The clip of a story: uint8 [frames, HEIGHT, WIDTH, 3]."""
    sprites = [person_sprite(person) for person in story.people]
    scenery = scenery_of(story)
    clip = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
    for frame in range(frames):
        picture = scenery.copy()
        for person, sprite in zip(story.people, sprites, strict=True):
            across, down = offset(person.motion, frame, frames)
            paste(picture, sprite, person.centre + across, down)
        clip[frame] = to_uint8(picture)
    return clip


def scenery_of(story: Story) -> Pixels:
    """Everything but the people."""
    picture = backdrop_picture(story.backdrop).copy()
    if story.thing is not None:
        paste(picture, thing_sprite(story.thing), story.thing_centre)
    return picture


def offset(motion: Motion, frame: int, frames: int = FRAMES) -> tuple[int, int]:
    """Where a person is at a frame, in pixels right of and below its place."""
    half = (frames - 1) // 2
    if motion == "jump":
        return 0, abs(frame - half) * 4 // max(half, 1) - 4 if frames > 1 else 0
    return {"still": 0, "left": half - frame, "right": frame - half}[motion], 0


def paste(picture: Pixels, sprite: Pixels, centre: int, down: int = 0) -> None:
    """Lays a sprite onto a picture, in place; what reaches beyond the edges is cut off."""
    left = centre - SPRITE // 2
    x0, x1 = max(left, 0), min(left + SPRITE, picture.shape[1])
    y0, y1 = max(down, 0), min(HEIGHT + down, HEIGHT)
    part = sprite[y0 - down : y1 - down, x0 - left : x1 - left]
    view = picture[y0:y1, x0:x1]
    view += part[..., 3:] * (part[..., :3] - view)


def to_uint8(picture: Pixels) -> NDArray[np.uint8]:
    return (picture * 255 + 0.5).astype(np.uint8)


# -- shapes, in pixels: columns from a sprite's middle, rows from the top --------------------------


def _box(left: float, right: float, top: float, bottom: float) -> Mask:
    return (_x >= left) & (_x < right) & (_y >= top) & (_y < bottom)


def _ellipse(x: float, y: float, across: float, down: float) -> Mask:
    return ((_x - x) / across) ** 2 + ((_y - y) / down) ** 2 < 1


def _triangle(x: float, top: float, half: float, bottom: float) -> Mask:
    return (_y < bottom) & (abs(_x - x) < (_y - top) / (bottom - top) * half)


def _hat(shape: int) -> tuple[Mask, float, float, float]:
    mask = (
        _box(-10, 10, 5, 16),
        _box(-7, 7, 3, 12) | _box(-14, 14, 11, 16),
        _triangle(0, -3, 13, 16) & (_y > 1),
    )[shape]
    return mask, 0, 11, 2.5


def _shirt(shape: int) -> tuple[Mask, float, float, float]:
    mask = (
        _box(-12, 12, 34, 51),
        _box(-15, 15, 34, 42) | _box(-9, 9, 34, 51),
        (_y >= 34) & (_y < 54) & (abs(_x) < 7 + (_y - 34) * 0.45),
    )[shape]
    return mask, 0, 43, 3


def _bag(shape: int) -> tuple[Mask, float, float, float]:
    mask = (
        _box(5, 18, 46, 61),
        _ellipse(11.5, 54, 8, 8),
        (_y >= 45) & (_y < 61) & (abs(_x - 11.5) < 8 - (_y - 45) * 0.25),
    )[shape]
    return mask, 11.5, 53.5, 3


_OUTLINES = {"hat": _hat, "shirt": _shirt, "bag": _bag}


def _layers(*layers: tuple[Mask, tuple[float, float, float]]) -> Pixels:
    """Masks of samples painted over each other, averaged to pixels, colours not premultiplied."""
    colour = np.zeros((*_x.shape, 3), np.float32)
    painted = np.zeros(_x.shape, np.bool_)
    for mask, rgb in layers:
        colour[mask] = rgb
        painted |= mask
    cells = (HEIGHT, SAMPLES, SPRITE, SAMPLES)
    alpha = painted.reshape(cells).mean((1, 3), dtype=np.float32)
    total = colour.reshape(*cells, 3).mean((1, 3), dtype=np.float32)
    sprite = np.concatenate([total / np.maximum(alpha, 1e-6)[..., None], alpha[..., None]], 2)
    sprite.flags.writeable = False
    return sprite


def over(below: Pixels, above: Pixels) -> Pixels:
    """One sprite laid over another, as a sprite."""
    a, b = above[..., 3:], below[..., 3:]
    alpha = a + b * (1 - a)
    colour = (above[..., :3] * a + below[..., :3] * b * (1 - a)) / np.maximum(alpha, 1e-6)
    return np.concatenate([colour, alpha], 2)

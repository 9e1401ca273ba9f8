"""Every look there is in the drawn world, counted through: faces, attributes, things, backdrops.

A look is a few small integers. Each kind of look forms a `Space`, a sequence in a scrambled but
fixed order, so that a number names a look; the last fifth of it is held out of training. Colours
are indices into `PALETTE`, far enough apart to survive a VAE, none of them near white, which is
the paper that references are drawn on.
"""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Kind = Literal["bag", "hat", "shirt"]
KINDS: tuple[Kind, ...] = ("bag", "hat", "shirt")  # the order of their files in a prompt folder
HELD_OUT = 5  # one in five


def _palette() -> tuple[tuple[float, float, float], ...]:
    bright = [colorsys.hsv_to_rgb(hue / 12, 0.85, 0.95) for hue in range(12)]
    dark = [colorsys.hsv_to_rgb((hue + 0.3) / 7, 0.85, 0.5) for hue in range(7)]
    return (*bright, *dark, (0.1, 0.1, 0.1), (0.5, 0.5, 0.5))


PALETTE = _palette()
"""RGB in [0, 1]."""
COLOURS = len(PALETTE)


@dataclass(frozen=True)
class Face:
    """An identity. Colours of neighbouring parts differ."""

    skin: int
    hair: int
    chin: int
    glasses: int
    style: int
    """Of the hair: 0 to 2."""


@dataclass(frozen=True)
class Look:
    """What an attribute of some kind looks like."""

    kind: Kind
    shape: int
    """0 to 2."""
    pattern: int
    """0: one colour; 1: upper and lower half; 2: left and right half; 3: a band across."""
    colours: tuple[int, int]


@dataclass(frozen=True)
class Thing:
    """An object that belongs to nobody."""

    shape: int
    """0 to 2."""
    colours: tuple[int, int]


@dataclass(frozen=True)
class Backdrop:
    """What is behind everything."""

    sky: int
    ground: int
    horizon: int
    """0 to 2, from high to low."""
    pattern: int
    """Of the ground: 0 plain, 1 a lower band, 2 hills against the sky."""


T = TypeVar("T")


class Space(Generic[T]):
    """All looks of a kind in a fixed scrambled order, without repetition."""

    def __init__(self, choices: Sequence[int], build: Callable[..., T]) -> None:
        """choices: how many values each argument of `build` has."""
        self.choices, self.build = tuple(choices), build
        self.size = math.prod(choices)
        self.stride = int(self.size * 0.6180339887)
        while math.gcd(self.stride, self.size) != 1:
            self.stride += 1
        kept = self.size - self.size // HELD_OUT
        self.training, self.held_out = range(kept), range(kept, self.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> T:
        if not 0 <= number < self.size:
            raise IndexError(f"look {number} of {self.size}")
        rest, values = number * self.stride % self.size, []
        for choices in self.choices:
            rest, value = divmod(rest, choices)
            values.append(value)
        return self.build(*values)

    def part(self, held_out: bool) -> range:
        """The numbers of the looks that are held out of training, or of the others."""
        return self.held_out if held_out else self.training


def _other(colour: int, step: int) -> int:
    """One of the COLOURS - 1 other colours."""
    return (colour + 1 + step) % COLOURS


def _face(skin: int, hair: int, chin: int, glasses: int, style: int) -> Face:
    return Face(skin, _other(skin, hair), _other(skin, chin), _other(skin, glasses), style)


def _look(kind: Kind) -> Callable[[int, int, int], Look]:
    def build(first: int, second: int, shape: int) -> Look:
        pattern, step = divmod(second, COLOURS - 1)  # the last one: no second colour
        if pattern == 3:
            return Look(kind, shape, 0, (first, first))
        return Look(kind, shape, pattern + 1, (first, _other(first, step)))

    return build


FACES = Space((COLOURS, COLOURS - 1, COLOURS - 1, COLOURS - 1, 3), _face)
LOOKS = {kind: Space((COLOURS, 3 * (COLOURS - 1) + 1, 3), _look(kind)) for kind in KINDS}
THINGS = Space((COLOURS, COLOURS - 1, 3), lambda a, b, shape: Thing(shape, (a, _other(a, b))))
BACKDROPS = Space(
    (COLOURS, COLOURS - 1, 3, 3),
    lambda sky, ground, *rest: Backdrop(sky, _other(sky, ground), *rest),
)

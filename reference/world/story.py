"""What a scene of the drawn world shows, and how its caption says it: a function of a seed.

One to three people stand side by side, left to right as the caption names them. Each is one word
("man"), moves in one way, and wears or carries none to three attributes, each one word ("hat").
The words say nothing of looks, and the same kinds occur on several people: whose hat is
whose is told by the grouping of the references alone. In half of the scenes two people's hats
are called by different words, in the others by the same, whose weights cancel (SPEC 4.3).
"""

import random
from dataclasses import dataclass
from typing import Literal

from lumosx_rt.reference.world.looks import (
    BACKDROPS,
    FACES,
    KINDS,
    LOOKS,
    THINGS,
    Backdrop,
    Face,
    Kind,
    Look,
    Thing,
)

Motion = Literal["still", "left", "right", "jump"]
MOTIONS: tuple[Motion, ...] = ("still", "left", "right", "jump")
MAX_PEOPLE = 4

PEOPLE = ("man", "lady", "boy", "girl", "robot", "clown", "sailor", "knight", "monk", "pirate")
NOUNS: dict[Kind, tuple[str, ...]] = {
    "bag": ("bag", "basket", "bucket"),
    "hat": ("hat", "helmet", "hood"),
    "shirt": ("shirt", "suit", "sweater"),
}
THING_NOUNS = ("ball", "box", "tree")  # by shape
PLACES = ("beach", "forest", "street", "desert", "meadow", "harbour")
MOVES = {
    "still": "stands still",
    "left": "walks to the left",
    "right": "walks to the right",
    "jump": "jumps up",
}
WHERE = {1: ("In the middle",), 2: ("On the left", "On the right")}
WHERE[3] = ("On the left", "In the middle", "On the right")
WHERE[4] = ("On the left", "Next", "After that", "On the right")
CENTRES = {1: (72,), 2: (40, 104), 3: (24, 72, 120), 4: (20, 56, 92, 128)}  # pixels
THING_CENTRES = {1: (24, 120), 2: (72,), 3: (), 4: ()}


@dataclass(frozen=True)
class Attribute:
    word: str
    look: Look


@dataclass(frozen=True)
class Person:
    """One subject: its word, who it is, what belongs to it, how it moves, where it stands."""

    word: str
    face: Face
    attributes: tuple[Attribute, ...]
    """At most one of a kind, in the order of `KINDS`."""
    motion: Motion
    centre: int
    """Column of the middle of its place, in pixels."""

    def look(self, kind: Kind) -> Look | None:
        return next((a.look for a in self.attributes if a.look.kind == kind), None)


@dataclass(frozen=True)
class Story:
    """One scene of the drawn world."""

    seed: int
    held_out: bool
    """Whether its looks are among those that training never shows."""
    people: tuple[Person, ...]
    place: str
    backdrop: Backdrop
    thing: Thing | None = None
    thing_centre: int = 0

    @property
    def name(self) -> str:
        return f"{'held-out' if self.held_out else 'training'}-{len(self.people)}-{self.seed:06d}"

    @property
    def thing_word(self) -> str | None:
        return None if self.thing is None else THING_NOUNS[self.thing.shape]

    @property
    def caption(self) -> str:
        parts = []
        for where, person in zip(WHERE[len(self.people)], self.people, strict=True):
            worn = " and ".join(f"a {attribute.word}" for attribute in person.attributes)
            worn = f" with {worn}" if worn else ""
            parts.append(f"{where} a {person.word}{worn} {MOVES[person.motion]}.")
        thing = ""
        if self.thing is not None:
            side = (
                "middle" if len(self.people) > 1 else "left" if self.thing_centre < 72 else "right"
            )
            thing = f" with a {self.thing_word} on the {side}"
        return f"{' '.join(parts)} It is a {self.place}{thing}."


def story(seed: int, people: int, held_out: bool = False) -> Story:
    """The scene of a seed. No two seeds of a part and number of people share a face.

    people: 1 to 4; how many stand in it. held_out: with looks that training never shows.
    """
    chance = random.Random(f"{seed} {people} {held_out}")
    faces = FACES.part(held_out)
    if not 0 <= seed < len(faces) // 16:
        raise ValueError(f"seed must be 0 to {len(faces) // 16 - 1}, got {seed}")
    first = faces.start + 16 * seed + {1: 0, 2: 1, 3: 3, 4: 6}[people]
    worn = _kinds(people, chance)
    nouns = _nouns(people, chance)
    words = chance.sample(PEOPLE, people)
    cast = []
    for p in range(people):
        attributes = []
        for kind in worn[p]:
            numbers = LOOKS[kind].part(held_out)
            look = LOOKS[kind][numbers[chance.randrange(len(numbers))]]
            attributes.append(Attribute(nouns[kind][p], look))
        motion = chance.choice(MOTIONS)
        face = FACES[first + p]
        cast.append(Person(words[p], face, tuple(attributes), motion, CENTRES[people][p]))
    place = chance.choice(PLACES)
    backdrop = BACKDROPS[chance.choice(BACKDROPS.part(held_out))]
    thing, centre = None, 0
    if THING_CENTRES[people] and chance.random() < 0.5:
        thing = THINGS[chance.choice(THINGS.part(held_out))]
        centre = chance.choice(THING_CENTRES[people])
    return Story(seed, held_out, tuple(cast), place, backdrop, thing, centre)


def _kinds(people: int, chance: random.Random) -> list[list[Kind]]:
    """What each person has: none to three kinds, and where there are two, one in common."""
    worn = [{kind for kind in KINDS if chance.random() < 0.6} for _ in range(people)]
    if people > 1:
        shared = chance.choice(KINDS)
        for p in chance.sample(range(people), 2):
            worn[p].add(shared)
    return [[kind for kind in KINDS if kind in kinds] for kinds in worn]


def _nouns(people: int, chance: random.Random) -> dict[Kind, list[str]]:
    """A word for each kind and person; in half of the scenes, one for all."""
    if chance.random() < 0.5:
        return {kind: [chance.choice(NOUNS[kind])] * people for kind in KINDS}
    return {
        kind: [NOUNS[kind][(start + p) % 3] for p in range(people)]
        for kind in KINDS
        for start in [chance.randrange(3)]
    }

"""Fixed lists of scenes: what a LumosX of the drawn world is judged by, and calibrated on.

A list is a name and some seeds; everything else follows from them (`story`). The same lists as
JSON, captions included, are in benchmarks/scenes/ and calibration/scenes/ for other programs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lumosx_rt.reference.world.story import Story, story

TRAINING_SEEDS = range(6000)
"""Seeds of training stories that the world's own training may use."""


@dataclass(frozen=True)
class SceneList:
    """Scenes by seed and number of people. A list that has been published is never changed."""

    name: str
    held_out: bool
    """With looks that training never shows."""
    seeds: Mapping[int, Sequence[int]]
    """People in a scene -> seeds."""

    @property
    def members(self) -> list[tuple[int, int]]:
        """(seed, people), mixed so that every beginning of the list has its share of each."""
        placed = [
            ((i + 0.5) / len(seeds), people, seed)
            for people, seeds in self.seeds.items()
            for i, seed in enumerate(seeds)
        ]
        return [(seed, people) for _, people, seed in sorted(placed)]

    @cached_property
    def stories(self) -> list[Story]:
        return [story(seed, people, self.held_out) for seed, people in self.members]

    @property
    def sha256(self) -> str:
        """Of all that its stories say and show."""
        return hashlib.sha256("\n".join(map(repr, self.stories)).encode()).hexdigest()

    def as_json(self) -> str:
        """The list for other programs: one line for each scene."""
        head = {"name": self.name, "held_out": self.held_out, "sha256": self.sha256}
        scenes = ",\n".join(f"  {json.dumps(_entry(told))}" for told in self.stories)
        return f'{json.dumps(head)[:-1]}, "scenes": [\n{scenes}\n]}}\n'


def _entry(told: Story) -> dict[str, Any]:
    return {
        "name": told.name,
        "seed": told.seed,
        "people": len(told.people),
        "caption": told.caption,
    }


# In scene 14 of three people two bags look alike, so that nobody could say whose is whose.
BINDING = SceneList(
    "binding-v1", True, {1: range(88), 2: range(92), 3: (*range(14), *range(15, 21))}
)
BINDING_CI = SceneList("binding-ci-v1", True, {1: range(5), 2: range(5), 3: range(2)})
FOUR = SceneList("four-people-v1", True, {4: range(20)})
"""More people than training ever shows."""
CALIBRATION = SceneList(
    "calibration-v1", False, {1: range(6000, 6020), 2: range(6000, 6030), 3: range(6000, 6014)}
)

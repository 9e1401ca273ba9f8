"""The published lists: their sizes, nothing shared, and the JSON that other programs read."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lumosx_rt.reference.world.scene_lists import (
    BINDING,
    BINDING_CI,
    CALIBRATION,
    FOUR,
    TRAINING_SEEDS,
)
from lumosx_rt.reference.world.story import story

ROOT = Path(__file__).parents[3]
PUBLISHED = {
    "benchmarks/scenes/binding-v1.json": BINDING,
    "benchmarks/scenes/binding-ci-v1.json": BINDING_CI,
    "benchmarks/scenes/four-people-v1.json": FOUR,
    "calibration/scenes/world-v1.json": CALIBRATION,
}


def faces(stories):
    return [person.face for told in stories for person in told.people]


@pytest.mark.parametrize(
    "scenes, sizes",
    [
        (BINDING, {1: 88, 2: 92, 3: 20}),
        (BINDING_CI, {1: 5, 2: 5, 3: 2}),
        (FOUR, {4: 20}),
        (CALIBRATION, {1: 20, 2: 30, 3: 14}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_sizes(scenes, sizes):
    assert Counter(people for _, people in scenes.members) == sizes
    assert len(set(scenes.members)) == sum(sizes.values())


def test_a_beginning_of_a_list_has_its_share_of_each():
    shares = Counter(people for _, people in BINDING.members[:50])
    assert shares == {1: 22, 2: 23, 3: 5}


def test_ci_is_part_of_the_whole():
    assert set(BINDING_CI.members) < set(BINDING.members) and BINDING_CI.held_out


def test_no_face_occurs_twice_nor_in_training():
    listed = faces([*BINDING.stories, *FOUR.stories, *CALIBRATION.stories])
    assert len(set(listed)) == len(listed)
    last = TRAINING_SEEDS.stop
    seeds = [*range(0, last, 23), *range(last - 20, last)]
    training = faces(story(seed, people) for seed in seeds for people in (1, 2, 3))
    assert not set(training) & set(listed)


def test_calibration_shows_only_what_training_may_show():
    assert not CALIBRATION.held_out and BINDING.held_out
    seeds = {seed for seed, _ in CALIBRATION.members}
    assert not seeds & set(TRAINING_SEEDS) and {*range(4096)} < {*TRAINING_SEEDS}


def test_several_people_have_the_same_kind_and_never_with_the_same_look():
    shared = 0
    for told in BINDING.stories:
        looks = [a.look for person in told.people for a in person.attributes]
        assert len(set(looks)) == len(looks), f"{told.name}: what is swapped there looks right"
        shared += len({look.kind for look in looks}) < len(looks)
    assert shared == 92 + 20


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_published_lists_are_these(file):
    """Where this fails, stories have changed: old results cannot be compared with new ones."""
    text, scenes = (ROOT / file).read_text("utf-8"), PUBLISHED[file]
    assert text == scenes.as_json()
    found = json.loads(text)
    assert [(s["seed"], s["people"]) for s in found["scenes"]] == scenes.members
    entry = found["scenes"][0]
    assert story(entry["seed"], entry["people"], found["held_out"]).caption == entry["caption"]

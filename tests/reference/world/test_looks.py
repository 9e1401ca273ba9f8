"""The spaces of looks: counted through once, a fifth held out."""

import pytest

from lumosx_rt.reference.world.looks import BACKDROPS, COLOURS, FACES, LOOKS, PALETTE, THINGS

SPACES = {**LOOKS, "things": THINGS, "backdrops": BACKDROPS}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_holds_every_look_once(name):
    space = SPACES[name]
    assert len({space[number] for number in range(len(space))}) == len(space)


def test_sizes_are_those_of_the_choices():
    pairs = COLOURS * (COLOURS - 1)
    assert len(FACES) == COLOURS * (COLOURS - 1) ** 3 * 3
    assert {len(space) for space in LOOKS.values()} == {3 * (3 * pairs + COLOURS)}
    assert len(THINGS) == 3 * pairs and len(BACKDROPS) == 9 * pairs


@pytest.mark.parametrize("space", [FACES, *SPACES.values()])
def test_a_fifth_is_held_out_and_the_rest_is_for_training(space):
    assert [*space.training, *space.held_out] == list(range(len(space)))
    assert len(space.held_out) == len(space) // 5
    assert space.part(True) == space.held_out and space.part(False) == space.training


def test_there_are_no_other_numbers():
    for number in (-1, len(THINGS)):
        with pytest.raises(IndexError):
            THINGS[number]


def test_neighbouring_parts_differ_in_colour():
    for number in range(0, len(FACES), 997):
        face = FACES[number]
        assert face.skin not in (face.hair, face.chin, face.glasses)
    for number in range(0, len(LOOKS["hat"]), 7):
        look = LOOKS["hat"][number]
        assert (look.colours[0] == look.colours[1]) == (look.pattern == 0)


def test_no_two_colours_are_near_each_other_or_near_paper():
    colours = [*PALETTE, (1.0, 1.0, 1.0)]
    for i, a in enumerate(colours):
        for b in colours[:i]:
            assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 0.15

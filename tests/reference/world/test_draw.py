"""Drawing: the same pixels every time, each where the story puts it."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.looks import PALETTE
from lumosx_rt.reference.world.story import MOTIONS, story


def bytes_of(colour):
    return [int(value * 255 + 0.5) for value in colour]


def test_the_same_story_gives_the_same_pixels_here_and_in_another_program():
    code = (
        "import hashlib\n"
        "from lumosx_rt.reference.world import draw, story\n"
        "print(hashlib.sha256(draw.frames_of(story.story(3, 3, True)).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    frames = draw.frames_of(story(3, 3, held_out=True))
    assert frames.shape == (9, 64, 144, 3) and frames.dtype == np.uint8
    assert done.stdout.strip() == hashlib.sha256(frames.tobytes()).hexdigest()


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_person_moves_by_whole_pixels_from_frame_to_frame(motion):
    told = story(2, 1)
    told = replace(told, thing=None, people=(replace(told.people[0], motion=motion),))
    path = {
        "still": [(0, 0)] * 9,
        "left": [(4 - f, 0) for f in range(9)],
        "right": [(f - 4, 0) for f in range(9)],
        "jump": [(0, -f if f <= 4 else f - 8) for f in range(9)],
    }[motion]
    person, scenery = told.people[0], draw.scenery_of(told)
    for frame, (across, down) in zip(draw.frames_of(told), path, strict=True):
        assert (frame == slow(scenery, person, across, down)).all()


def slow(scenery, person, across, down):
    """One person on the scenery, pixel by pixel."""
    sprite, picture = draw.person_sprite(person), scenery.copy()
    for row, column in np.argwhere(sprite[..., 3] > 0):
        y, x = row + down, person.centre - 20 + column + across
        if 0 <= y < 64 and 0 <= x < 144:
            alpha = sprite[row, column, 3]
            picture[y, x] += alpha * (sprite[row, column, :3] - picture[y, x])
    return (picture * 255 + 0.5).astype(np.uint8)


def test_a_face_has_its_colours_where_its_parts_are():
    told = story(0, 1)
    person = replace(told.people[0], motion="still", attributes=())
    face, frame = person.face, draw.frames_of(replace(told, people=(person,)))[0]
    for (row, column), colour in {
        (17, 0): face.hair,
        (23, -6): face.glasses,
        (25, 0): face.skin,
        (33, 0): face.chin,
    }.items():
        assert frame[row, person.centre + column].tolist() == bytes_of(PALETTE[colour])


def test_a_reference_lies_on_white_paper_away_from_the_edges():
    picture = draw.paper(draw.face_sprite(story(1, 1).people[0].face))
    assert picture.shape == (64, 144, 3)
    assert (picture[:, :52] == 255).all() and (picture[:, 92:] == 255).all()
    assert (picture[:, 52:92] < 255).any()


def test_leaving_an_attribute_out_shows_what_is_below():
    person = next(p for s in range(50) for p in story(s, 1).people if p.look("hat"))
    bare = replace(person, attributes=tuple(a for a in person.attributes if a.look.kind != "hat"))
    assert (draw.person_sprite(person, without=("hat",)) == draw.person_sprite(bare)).all()
    assert (draw.person_sprite(person) != draw.person_sprite(bare)).any()

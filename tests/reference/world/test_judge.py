"""The judge, shown clips of which it is known who wears what, and clips that show nothing."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.judge import (
    FACES_BESIDE,
    LOOKS_BESIDE,
    judge,
    psnr,
    ssim,
)
from lumosx_rt.reference.world.score import estimates, tally
from lumosx_rt.reference.world.story import story

ALL = [story(seed, 1 + seed % 3, held_out=True) for seed in range(3, 9)]
CROWDS = [story(seed, people, held_out=True) for seed, people in [(0, 2), (1, 2), (2, 3), (3, 3)]]
RIGHT = ("identity", "binding", "motion", "object", "backdrop")


def rates(stories, clip_of):
    """Every metric over stories whose clips are made by `clip_of`."""
    found = estimates([tally(judge(clip_of(told), told)) for told in stories])
    return {name: estimate.value for name, estimate in found.items()}


def rotated(told, what):
    """A story in which everybody has what the next one had."""
    people = told.people
    nexts = (*people[1:], people[0])
    return replace(told, people=tuple(what(p, n) for p, n in zip(people, nexts, strict=True)))


def likely(cases, chance, risk=1e-4):
    """The most hits that so many cases have by chance, but for a small risk."""
    tail, hits = 1.0, 0
    while tail > risk:
        tail -= comb(cases, hits) * chance**hits * (1 - chance) ** (cases - hits)
        hits += 1
    return hits - 1


# -- known answers ------------------------------------------------------------------------------


def test_the_target_itself_is_perfect():
    found = rates(ALL, draw.frames_of)
    assert [found[name] for name in RIGHT] == [1.0] * 5
    assert found["psnr"] == found["backdrop_psnr"] == 99 and found["ssim"] == 1
    wrong = ("placement", "stranger", "swapped", "missing", "unknown", "extra")
    assert [found[name] for name in wrong] == [0] * 6


def test_attributes_that_change_owners_are_right_faces_with_nothing_bound():
    def swap(told):
        swapped = rotated(told, lambda person, other: replace(person, attributes=other.attributes))
        return draw.frames_of(swapped)

    found = rates(CROWDS, swap)
    assert found["identity"] == found["motion"] == 1 and found["binding"] == 0
    assert found["swapped"] > 0.3 and found["swapped"] + found["missing"] == 1


def test_people_who_change_places_keep_what_is_theirs():
    def swap(told):
        return draw.frames_of(rotated(told, lambda p, other: replace(other, centre=p.centre)))

    found = rates(CROWDS, swap)
    assert (found["identity"], found["placement"], found["binding"]) == (0, 1, 1)
    assert found["motion"] == 1 and found["extra"] == 0


def test_faces_alone_that_change_places_leave_what_is_worn_behind():
    def swap(told):
        return draw.frames_of(rotated(told, lambda p, other: replace(p, face=other.face)))

    found = rates(CROWDS, swap)
    assert (found["identity"], found["placement"], found["binding"]) == (0, 1, 0)


def test_people_without_what_they_should_have_miss_it():
    def bare(told):
        people = tuple(replace(person, attributes=()) for person in told.people)
        return draw.frames_of(replace(told, people=people))

    found = rates(CROWDS, bare)
    assert found["identity"] == 1 and found["missing"] == 1 and found["extra"] == 0


def test_what_leaks_to_somebody_who_has_none_is_extra():
    told = story(3, 3, held_out=True)
    worn = {a.look.kind: a for person in told.people for a in person.attributes}
    everybody = tuple(
        replace(
            person,
            attributes=(
                *person.attributes,
                *(a for kind, a in worn.items() if person.look(kind) is None),
            ),
        )
        for person in told.people
    )
    seen = judge(draw.frames_of(replace(told, people=everybody)), told).people
    wanted = [len(worn) - len(person.attributes) for person in told.people]
    assert [person.extra for person in seen] == wanted and sum(wanted) > 0
    assert all(a.seen == "bound" for person in seen for a in person.attributes)


def test_a_stranger_is_no_other_of_the_scene():
    strangers = iter(
        person.face for seed in range(90, 99) for person in story(seed, 3, True).people
    )

    def other(told):
        people = tuple(replace(person, face=next(strangers)) for person in told.people)
        return draw.frames_of(replace(told, people=people))

    found = rates(CROWDS[:2], other)
    assert found["identity"] < 1 and found["binding"] > 0.5


def test_a_clip_that_stands_still_moves_nobody():
    found = rates(CROWDS, lambda told: np.repeat(draw.frames_of(told)[:1], 9, axis=0))
    assert found["motion"] == 0 and found["identity"] == found["binding"] == 1


def test_a_clip_that_runs_backwards_mistakes_left_for_right():
    walkers = [t for t in ALL + CROWDS if {"left", "right"} & {p.motion for p in t.people}]
    told = walkers[0]
    seen = judge(draw.frames_of(told)[::-1].copy(), told)
    turned = {"left": "right", "right": "left", "jump": "jump", "still": "still"}
    assert [p.motion for p in seen.people] == [turned[p.motion] for p in told.people]


def test_another_backdrop_and_object_are_seen():
    told = next(t for t in ALL if t.thing is not None)
    other = next(story(s, 1, True) for s in range(50, 90) if story(s, 1, True).thing)
    changed = replace(told, thing=other.thing, backdrop=other.backdrop)
    seen = judge(draw.frames_of(changed), told)
    assert seen.thing is False and seen.backdrop is False and seen.backdrop_psnr < 20
    assert all(person.face == "own" for person in seen.people)


# -- robustness ---------------------------------------------------------------------------------


def noisy(told):
    chance = np.random.default_rng(told.seed)
    clip = draw.frames_of(told) + chance.normal(0, 255 * 10 ** (-24 / 20), (9, 64, 144, 3))
    return clip.clip(0, 255).astype(np.uint8)


def blurred(told):
    """Three pixels wide in both directions."""
    clip = np.pad(draw.frames_of(told).astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    shifts = [(y, x) for y in range(3) for x in range(3)]
    return (sum(clip[:, y : y + 64, x : x + 144] for y, x in shifts) / 9).astype(np.uint8)


@pytest.mark.parametrize("spoil", [noisy, pytest.param(blurred, marks=pytest.mark.slow)])
def test_noise_and_blur_change_nothing_that_is_seen(spoil):
    found = rates(ALL, spoil)
    assert min(found[name] for name in RIGHT) >= 0.98, found
    assert 15 < found["psnr"] < 45 and found["ssim"] < 1


@pytest.mark.parametrize("across", [-2, pytest.param(2, marks=pytest.mark.slow)])
def test_a_clip_that_is_two_pixels_off_shows_the_same_people(across):
    found = rates(ALL, lambda told: np.roll(draw.frames_of(told), across, axis=2))
    assert found["identity"] == found["binding"] == found["motion"] == 1


# -- nothing to see -----------------------------------------------------------------------------


@pytest.mark.parametrize("shown", ["noise", "grey"])
def test_a_clip_of_nothing_is_judged_by_chance(shown):
    def clip(told):
        grey = np.full((9, 64, 144, 3), 128, np.uint8)
        chance = np.random.default_rng(told.seed)
        return chance.integers(0, 256, grey.shape, np.uint8) if shown == "noise" else grey

    tallies = [tally(judge(clip(told), told)) for told in ALL + CROWDS]
    for name, chance in {
        "identity": 1 / (1 + FACES_BESIDE),
        "binding": 1 / (2 + LOOKS_BESIDE),
        "backdrop": 1 / (1 + LOOKS_BESIDE),
    }.items():
        hits, cases = np.sum([t[name] for t in tallies], axis=0)
        assert hits <= likely(int(cases), chance), name
    assert np.mean([t["psnr"][0] for t in tallies]) < 20


# -- numbers ------------------------------------------------------------------------------------


def test_psnr_is_decibels_below_one():
    assert psnr(0.01) == pytest.approx(20) and psnr(1.0) == pytest.approx(0)
    assert psnr(0.0) == 99


def test_ssim_is_the_mean_over_windows_computed_one_by_one():
    chance = np.random.default_rng(0)
    a = chance.integers(0, 256, (2, 9, 11, 3), np.uint8)
    b = (a * 0.7 + chance.integers(0, 70, a.shape)).astype(np.uint8)
    x, y = a / 255, b / 255
    values = []
    for frame, row, column, channel in np.ndindex(2, 3, 5, 3):
        window = np.s_[frame, row : row + 7, column : column + 7, channel]
        (vx, cov), (_, vy) = np.cov(x[window].ravel(), y[window].ravel())
        mx, my = x[window].mean(), y[window].mean()
        values.append(
            (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        )
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-12)
    assert ssim(a, a) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(5, 64, 144, 3), (9, 64, 128, 3)])
def test_a_clip_of_another_size_is_refused(shape):
    with pytest.raises(LumosXError, match="9, 64, 144"):
        judge(np.zeros(shape, np.uint8), ALL[0])
    with pytest.raises(LumosXError, match="float32"):
        judge(np.zeros((9, 64, 144, 3), np.float32), ALL[0])

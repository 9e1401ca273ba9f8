"""Scores: counts by hand, and intervals against closed forms."""

import math

import numpy as np
import pytest

from lumosx_rt.reference.world.judge import AttributeSeen, PersonSeen, Seen
from lumosx_rt.reference.world.score import METRICS, differences, estimates, tally


def scene(hits, cases=1, name="identity"):
    """A tally of which one metric matters."""
    return dict.fromkeys(METRICS, (0.0, 1.0)) | {name: (float(hits), float(cases))}


def test_a_clip_is_counted_person_by_person():
    hat, bag, shirt = (
        AttributeSeen("hat", "bound"),
        AttributeSeen("bag", "swapped"),
        AttributeSeen("shirt", "missing"),
    )
    people = (
        PersonSeen("own", "left", True, True, (hat, bag), 0),
        PersonSeen("other", "still", True, False, (shirt,), 2),
        PersonSeen("distractor", "still", False, True, (AttributeSeen("hat", "distractor"),), 0),
    )
    found = tally(Seen(people, None, True, 30.0, 25.0, 0.9))
    assert found == {
        "identity": (1, 3),
        "placement": (1, 3),
        "stranger": (1, 3),
        "binding": (1, 4),
        "swapped": (1, 4),
        "missing": (1, 4),
        "unknown": (1, 4),
        "extra": (2, 3),
        "motion": (1, 2),
        "object": (0, 0),
        "backdrop": (1, 1),
        "backdrop_psnr": (30.0, 1),
        "psnr": (25.0, 1),
        "ssim": (0.9, 1),
    }


def test_a_rate_weighs_cases_and_not_scenes():
    assert estimates([scene(1, 1), scene(0, 3)])["identity"].value == 0.25


def test_without_a_case_there_is_no_rate():
    found = estimates([scene(0, 0, "object"), scene(0, 0, "object")])
    assert all(math.isnan(value) for value in found["object"])
    assert not math.isnan(found["identity"].value)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_an_interval_is_the_binomial_one(rate):
    count = 400
    hits = int(rate * count)
    found = estimates([scene(i < hits) for i in range(count)])["identity"]
    half = 1.96 * math.sqrt(rate * (1 - rate) / count)
    assert found.value == pytest.approx(rate)
    assert found.low == pytest.approx(rate - half, abs=0.15 * half)
    assert found.high == pytest.approx(rate + half, abs=0.15 * half)


def test_an_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(30, 4, 300)
    found = estimates([scene(v, 1, "psnr") for v in values])["psnr"]
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_scenes_that_go_together_make_intervals_wider_than_cases_alone():
    together = [scene(4 * (i % 2), 4) for i in range(100)]
    apart = [scene(i % 2) for i in range(400)]
    wide, narrow = (estimates(s)["identity"] for s in (together, apart))
    assert wide.high - wide.low == pytest.approx(2 * (narrow.high - narrow.low), rel=0.15)


def test_paired_differences_are_surer_than_unpaired_ones():
    chance = np.random.default_rng(2)
    hard = chance.normal(30, 5, 100)
    first = [scene(v, 1, "psnr") for v in hard + chance.normal(0.5, 0.3, 100)]
    second = [scene(v, 1, "psnr") for v in hard]
    shuffled = [second[i] for i in chance.permutation(100)]
    paired, unpaired = (differences(first, s)["psnr"] for s in (second, shuffled))
    assert paired.value == pytest.approx(unpaired.value)
    assert 0.3 < paired.low < paired.value < paired.high < 0.8
    assert paired.high - paired.low < 0.2 * (unpaired.high - unpaired.low)


def test_a_run_does_not_differ_from_itself():
    run = [scene(i % 3 == 0) for i in range(30)]
    assert differences(run, run)["identity"] == (0, 0, 0)


def test_pairs_need_the_same_scenes():
    with pytest.raises(ValueError, match="2 and 1"):
        differences([scene(1), scene(0)], [scene(1)])

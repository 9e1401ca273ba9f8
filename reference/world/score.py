"""What was seen in many clips, as numbers with intervals.

    identity     places where the right face is seen, of all places
    placement    places where another of the scene's faces is seen
    stranger     places where a distractor's face is seen
    binding      attributes seen on whom they belong to, of all attributes of whoever is there
    swapped, missing, unknown    attributes that are another person's, not there, or a distractor's
    extra        attributes of a kind that the person in the place does not have, per person
    motion       people that should move and are seen to move so
    object, backdrop             scenes in which it is the right one
    backdrop_psnr, psnr, ssim    against the target clip, means over scenes

Every rate is a ratio of sums over scenes; intervals are percentiles of 2,000 resamplings of scenes,
and two engines are compared on the same resamplings (paired).
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lumosx_rt.reference.world.judge import Seen

RESAMPLINGS = 2000
METRICS = (
    "identity",
    "placement",
    "stranger",
    "binding",
    "swapped",
    "missing",
    "unknown",
    "extra",
    "motion",
    "object",
    "backdrop",
    "backdrop_psnr",
    "psnr",
    "ssim",
)


Tally = dict[str, tuple[float, float]]


class Estimate(NamedTuple):
    """A rate or a mean, with a 95 % interval."""

    value: float
    low: float
    high: float


def tally(seen: Seen) -> Tally:
    """One clip's share of every metric: (hits, cases); a mean is a rate with one case."""
    people = seen.people
    attributes = [a.seen for person in people for a in person.attributes]
    moving = [person for person in people if person.moved]

    def share(hits: Sequence[bool]) -> tuple[float, float]:
        return float(sum(hits)), float(len(hits))

    return {
        "identity": share([p.face == "own" for p in people]),
        "placement": share([p.face == "other" for p in people]),
        "stranger": share([p.face == "distractor" for p in people]),
        "binding": share([a == "bound" for a in attributes]),
        "swapped": share([a == "swapped" for a in attributes]),
        "missing": share([a == "missing" for a in attributes]),
        "unknown": share([a == "distractor" for a in attributes]),
        "extra": (float(sum(p.extra for p in people)), float(len(people))),
        "motion": share([p.motion_right for p in moving]),
        "object": share([] if seen.thing is None else [seen.thing]),
        "backdrop": share([seen.backdrop]),
        "backdrop_psnr": (seen.backdrop_psnr, 1.0),
        "psnr": (seen.psnr, 1.0),
        "ssim": (seen.ssim, 1.0),
    }


def estimates(tallies: Sequence[Tally]) -> dict[str, Estimate]:
    """Every metric over some scenes; nan where no scene has a case."""
    return {name: _estimate(_ratios(_table(tallies, name))) for name in METRICS}


def differences(
    first: Sequence[Tally],
    second: Sequence[Tally],
) -> dict[str, Estimate]:
    """first - second of every metric, both over the same scenes in the same order (paired)."""
    if len(first) != len(second):
        raise ValueError(f"paired scenes: got {len(first)} and {len(second)}")
    return {
        name: _estimate(_ratios(_table(first, name)) - _ratios(_table(second, name)))
        for name in METRICS
    }


def as_dict(seen: Seen) -> dict[str, Any]:
    """What was seen, for a line of JSON."""
    return asdict(seen)


def _table(tallies: Sequence[Tally], name: str) -> NDArray[np.float64]:
    return np.array([tally[name] for tally in tallies], np.float64).reshape(-1, 2)


def _ratios(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ratio over all scenes, then over every resampling: [1 + RESAMPLINGS]."""
    chance = np.random.default_rng(0)
    picks = chance.integers(0, max(len(table), 1), (RESAMPLINGS, len(table)))
    sums = np.concatenate([table.sum(0)[None], table[picks].sum(1)])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])


def _estimate(ratios: NDArray[np.float64]) -> Estimate:
    resampled = ratios[1:][np.isfinite(ratios[1:])]
    if not np.isfinite(ratios[0]) or not len(resampled):
        return Estimate(float("nan"), float("nan"), float("nan"))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(ratios[0]), float(low), float(high))

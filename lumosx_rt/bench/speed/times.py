"""What many measured times say: percentiles, and ratios with bootstrap intervals."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 4000  # of a bootstrap
SHARE = 0.95  # of an interval


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share (0 to 1) of the values lies, between neighbours linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and 95th percentile of times, and how many they were: {"p50", "p95", "n"}, in ms."""
    p50, p95 = (round(1e3 * percentile(seconds, share), 3) for share in (0.5, 0.95))
    return {"p50": p50, "p95": p95, "n": len(seconds)}


def ratio(base: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """How many times as fast as the base: {"ratio", "low", "high"}.

    base, own: times of the same rounds, so that the machine's drift cancels. The median of the
    rounds' ratios, with a 95 % bootstrap interval over rounds. Raises ValueError for other lengths.
    """
    ratios = np.array([a / b for a, b in zip(base, own, strict=True)])
    draw = np.random.default_rng(0).integers(0, len(ratios), (DRAWS, len(ratios)))
    medians = np.median(ratios[draw], axis=1).tolist()
    tail = (1 - SHARE) / 2
    low, high = percentile(medians, tail), percentile(medians, 1 - tail)
    middle = statistics.median(ratios.tolist())
    return {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}

"""What many measured times say: percentiles, and ratios with bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lumosx_rt.reference.packages import require

DRAWS = 4000  # of a bootstrap
SHARE = 0.95  # of an interval


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share (0 to 1) of the values lies, between neighbours
    linearly."""
    return float(np.quantile(values, share))


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and 95th percentile of times, and how many they were: {"p50", "p95", "n"}, in ms."""
    p50, p95 = (round(1e3 * percentile(seconds, share), 3) for share in (0.5, 0.95))
    return {"p50": p50, "p95": p95, "n": len(seconds)}


def ratio(base: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """Return how many times as fast as the base: {"ratio", "low", "high"}.

    base, own: times of the same rounds, so that the machine's drift cancels. The median of the
    rounds' ratios, with a 95 % bootstrap interval over rounds, which is the ratio itself where
    there was one round. Raises ValueError for other lengths.
    """
    ratios = np.array([a / b for a, b in zip(base, own, strict=True)])
    middle = low = high = float(np.median(ratios))
    if len(ratios) > 1:
        low, high = _interval(ratios)
    return {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def _interval(ratios: np.ndarray[Any, Any]) -> tuple[float, float]:
    require("an interval of times", "scipy")
    from scipy import stats

    found = stats.bootstrap(
        (ratios,),
        np.median,
        n_resamples=DRAWS,
        confidence_level=SHARE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)

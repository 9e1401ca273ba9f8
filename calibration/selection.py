"""Which sites run in FP8: as much of the work as a budget on the velocity allows.

Errors of sites nearly add in energy, so keeping in high precision what costs most quality for its
work is the greedy answer to a knapsack. Its prefixes are measured on the whole model, not summed:
bisection finds the shortest that meets the budget, and then each kept site is tried in FP8 once
more, the heaviest first.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from lumosx_rt.calibration.sensitivity import Effect, decibels
from lumosx_rt.reference.errors import BadInput

Measure = Callable[[Collection[str]], tuple[float, ...]]
"""Sites in FP8 -> noise / signal of the velocity in every timestep bin."""
FRONT_POINTS = 8  # besides those that the search comes by


@dataclass(frozen=True)
class Point:
    """One choice, measured. share: of the blocks' floating-point operations that are in FP8;
    sqnr: of the velocity in every timestep bin, dB; kept: how many sites are not in FP8."""

    share: float
    sqnr: tuple[float, ...]
    kept: int

    @property
    def worst(self) -> float:
        return min(self.sqnr)


@dataclass(frozen=True)
class Choice:
    """kept: site -> why it stays. front: what was measured, by share; the chosen one is in it."""

    kept: dict[str, str]
    chosen: Point
    front: tuple[Point, ...]


def choose(
    effects: Mapping[str, Effect],
    flops: Mapping[str, int],
    unable: Mapping[str, str],
    budget: float,
    measure: Measure,
) -> Choice:
    """Return the choice for a budget: least SQNR of the velocity, in dB, in the worst timestep bin.

    effects: of the sites that can run in FP8; unable: why the others cannot. flops: of all sites.
    """
    check_budget(budget)
    order = sorted(effects, key=lambda s: -max(effects[s].velocity) / max(flops[s], 1))
    total = sum(flops.values())
    known: dict[frozenset[str], Point] = {}

    def point(kept: Iterable[str]) -> Point:
        quantized = frozenset(order) - frozenset(kept)
        if quantized not in known:
            sqnr = tuple(map(decibels, measure(sorted(quantized))))
            share = sum(flops[site] for site in quantized) / max(total, 1)
            known[quantized] = Point(share, sqnr, len(flops) - len(quantized))
        return known[quantized]

    low, high = 0, len(order)  # a prefix of `high` sites meets the budget: nothing is quantized
    while low < high:
        middle = (low + high) // 2
        if point(order[:middle]).worst >= budget:
            high = middle
        else:
            low = middle + 1
    kept = order[:high]
    for site in sorted(kept, key=lambda s: -flops[s]):
        fewer = [other for other in kept if other != site]
        if point(fewer).worst >= budget:
            kept = fewer
    for i in range(FRONT_POINTS + 1):
        point(order[: round(i / FRONT_POINTS * len(order))])
    why = {
        site: f"in FP8 too, the velocity would fall below {budget:g} dB (alone it costs "
        f"{decibels(max(effects[site].velocity)):.1f} dB)"
        for site in kept
    }
    front = tuple(sorted(known.values(), key=lambda p: (p.share, p.worst)))
    return Choice({**unable, **why}, point(kept), front)


def check_budget(budget: float) -> None:
    """Raise LumosXError for what is no budget."""
    if not math.isfinite(budget) or budget <= 0:
        raise BadInput(f"budget: a signal-to-noise ratio above 0 dB is needed, got {budget}")

"""Results of a benchmark as rates with intervals, and differences between two runs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lumosx_rt.bench.quality.suite import Result
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.world.score import METRICS, Estimate, Tally, differences, estimates

DECIBELS = ("backdrop_psnr", "psnr")
Measure = Callable[[Sequence[Tally]], dict[str, Estimate]]


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Return every metric over scenes with 1, 2, 3 people and over all, with 95 % intervals.

    `groups`: people -> {"scenes", metric: {"value", "low", "high"}}; null where there is no case.
    """
    groups = {
        name: {"scenes": len(part)} | _plain(estimates([result.tally for result in part]))
        for name, part in _grouped(results).items()
    }
    seconds = sum(result.seconds for result in results) / max(len(results), 1)
    return {"scenes": len(results), "seconds_per_scene": round(seconds, 3), "groups": groups}


def compare(results: Sequence[Result], others: Sequence[Result]) -> dict[str, Any]:
    """Return results - others over the scenes that both have (paired), as `summarise` says it.

    Raises LumosXError where they have no scene in common.
    """
    other = {result.name: result for result in others}
    common = [result for result in results if result.name in other]
    if not common:
        raise BadInput("against: the two runs have no scene in common; run the same list")
    groups = {
        name: {"scenes": len(part)}
        | _plain(differences([r.tally for r in part], [other[r.name].tally for r in part]))
        for name, part in _grouped(common).items()
    }
    return {"scenes": len(common), "groups": groups}


def as_text(summary: dict[str, Any], signed: bool = False) -> str:
    """Metrics down, numbers of people across."""
    groups = summary["groups"]
    heads = [f"{_people(name)} ({group['scenes']})" for name, group in groups.items()]
    rows = [["", *heads]]
    rows += [
        [_title(metric), *(_cell(metric, group[metric], signed) for group in groups.values())]
        for metric in METRICS
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    counts = sorted({result.people for result in results})
    parts = {str(n): [r for r in results if r.people == n] for n in counts}
    return parts | {"all": list(results)}


def _plain(found: dict[str, Estimate]) -> dict[str, Any]:
    return {
        name: None if math.isnan(estimate.value) else estimate._asdict()
        for name, estimate in found.items()
    }


def _people(name: str) -> str:
    return {"1": "1 person", "all": "all"}.get(name, f"{name} people")


def _title(metric: str) -> str:
    return f"{metric} (dB)" if metric in DECIBELS else metric


def _cell(metric: str, estimate: dict[str, float] | None, signed: bool) -> str:
    if estimate is None:
        return "-"
    form = ("+" if signed else "") + (".1f" if metric in DECIBELS else ".3f")
    value, low, high = (f"{estimate[key]:{form}}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"

"""A case: one row to be measured. Stages are generators of cases, and know nothing of files."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.book import Row
from benchmarks.gpu.problem import Latest, Problem
from benchmarks.gpu.scale import Scale


@dataclass(frozen=True)
class Case:
    """One row: its name, the shape it is about, and what finds its figures."""

    name: str
    shape: str
    run: Callable[[], Row]


@dataclass
class Bench:
    """What every stage works with."""

    scale: Scale
    gpu: str
    """GPU, software and date, in words."""
    out: Path
    measured: Callable[[str], list[Row]]
    """The rows that a stage has so far."""
    latest: Latest = field(default_factory=Latest)


def timed(
    bench: Bench, ways: Iterable[str], shape: str, build: Callable[..., Problem], *arguments: Any
) -> Iterator[Case]:
    """Cases that time ways to solve one problem, which is built when the first of them runs."""
    for way in ways:
        yield Case(way, shape, partial(_time, bench, way, build, arguments))


def _time(bench: Bench, way: str, build: Callable[..., Problem], arguments: Iterable[Any]) -> Row:
    problem: Problem = bench.latest(build, bench.scale, *arguments)
    return problem.timed(way)

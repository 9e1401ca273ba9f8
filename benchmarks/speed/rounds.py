"""Variants that pass their gate, run in turns; what is done is kept and not done again.

A folder holds `rounds.jsonl` (a line: every variant's seconds in one round) and
`profiles.jsonl`.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lumosx_rt.bench.common.folder import append_line, whole_lines
from lumosx_rt.bench.common.machine import load_average
from lumosx_rt.bench.speed.times import percentile, ratio

Row = dict[str, Any]
ROUNDS, PROFILES = "rounds.jsonl", "profiles.jsonl"


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Every variant once a round, so that the machine's drift meets all; whichever began the last
    round ends the next. Returns `rounds` rounds in which all of these ran, old ones first."""
    names = list(runs)
    done = [row for row in lines(folder / ROUNDS) if set(row["seconds"]) == set(names)]
    while len(done) < rounds:
        shift = len(done) % len(names)
        seconds = {}
        for name in names[shift:] + names[:shift]:
            start = clock()
            runs[name]()
            seconds[name] = clock() - start
        row = {"seconds": seconds, "load_average": load_average()}
        append_line(folder / ROUNDS, json.dumps(row))
        done.append(row)
        say(f"round {len(done)} of {rounds}, load average {row['load_average']}")
    return done[:rounds]


def explained(
    names: list[str],
    profile: Callable[[str], dict[str, float]],
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, float]]:
    """Where the time of each goes; a profile that fails is left out."""
    known = {row["name"]: row["shares"] for row in lines(folder / PROFILES)}
    for name in names:
        if name not in known:
            say(f"profile of {name}")
            try:
                shares = profile(name)
            except Exception as error:  # a profiler's own trouble costs one profile
                say(f"no profile of {name}: {reason_of(error)}")
                continue
            append_line(folder / PROFILES, json.dumps({"name": name, "shares": shares}))
            known[name] = shares
    return {name: known[name] for name in names if name in known}


def timed_rows(
    names: list[str], rounds: list[Row], base_of: Callable[[str], list[str]]
) -> dict[str, Row]:
    """Median milliseconds, and how many times as fast as each of its bases a variant is.

    base_of: the variants it is compared with, those that were not run are left out.
    """
    times = {name: [row["seconds"][name] for row in rounds] for name in names}
    return {
        name: {
            "median_ms": round(1e3 * percentile(times[name], 0.5), 2),
            "times_as_fast_as": {
                base: ratio(times[base], times[name]) for base in base_of(name) if base in times
            },
        }
        for name in names
    }


def lines(file: Path) -> list[Row]:
    """Rows of a file; one that was torn is not there."""
    found = []
    for line in whole_lines(file):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def reason_of(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

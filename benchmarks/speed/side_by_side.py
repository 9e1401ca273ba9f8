"""The released formulation, the reference, and engines of it, in turns in one run on a CPU.

    python -m benchmarks.speed.side_by_side                        all sizes
    python -m benchmarks.speed.side_by_side --size tiny --only "as released, eager" onnxruntime

One call of one stream, random weights. Every variant must first be as near to the reference in
float32 as its precision's gate says; one that is not, or fails, is a row without a time. Ratios are
of each round's times, with 95 % bootstrap intervals; a profile says where the time goes.
Graphs and packages are made once, in processes of their own, and lie with finished rounds in
out/side-by-side, so a run that is cut off goes on where it was. With one thread, times are the
processor's and not the wall's: others on the machine then cost nothing.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import write
from benchmarks.sources import stamp, stamp_digest
from benchmarks.speed import profiles
from benchmarks.speed.picture import draw
from benchmarks.speed.rounds import explained, in_turns, reason_of, timed_rows
from benchmarks.speed.sizes import SIZES, Size
from benchmarks.speed.variants import (
    BASELINE,
    VARIANTS,
    WAN,
    Judge,
    Run,
    Variant,
    model_of,
)  # fmt: skip
from lumosx_rt.bench.common.machine import machine
from lumosx_rt.bench.speed.page import aligned
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.files import replacing

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "out" / "side-by-side"
RESULTS = ROOT / "benchmarks" / "results" / "side_by_side.json"

Row = dict[str, Any]
MAKING_S = 1800  # for one graph or package


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="instead of the size's own number")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    parser.add_argument("--make", nargs=3, metavar=("SIZE", "VARIANT", "FILE"))
    given = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "inductor"))
    torch.set_num_threads(given.threads)
    if given.make:
        size, variant, file = given.make
        make(SIZES[size], VARIANTS[variant], Path(file))
        return 0
    content = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {"sizes": {}}
    for name in given.size:
        size = SIZES[name]
        content["sizes"][name] = measure(
            size, [VARIANTS[v] for v in given.only], given.rounds or size.rounds
        )
        content["sizes"] = {n: content["sizes"][n] for n in SIZES if n in content["sizes"]}
        write(content, given.out)
        print(as_text(name, content["sizes"][name]), flush=True)
    with replacing(given.out.with_suffix(".png")) as file:
        draw(content).save(file, format="PNG")
    return 0


def measure(size: Size, variants: list[Variant], rounds: int) -> Row:
    """A size's record: machine, rows."""
    model = model_of(size)
    where = machine()
    folder = CACHE / "rounds" / digest_of([asdict(size), where, [asdict_of(v) for v in variants]])
    folder.mkdir(parents=True, exist_ok=True)
    rows, runs, files = judged(size, model, variants)
    stamps = {variant.name: stamp(variant.all_sources) for variant in variants}
    alone = torch.get_num_threads() == 1
    done = in_turns(runs, rounds, folder, say, time.process_time if alone else time.perf_counter)
    timed = timed_rows(list(runs), done, lambda name: bases_of(VARIANTS[name]))

    def profile(name: str) -> dict[str, float]:
        return profiles.profile_of(
            VARIANTS[name], VARIANTS[name].of(size), model, files[name], runs[name]
        )

    shares = explained(list(runs), profile, folder, say)
    loads = [row["load_average"] for row in done if row["load_average"] is not None]
    return {
        "machine": where,
        "times": "processor" if alone else "wall",
        "load_average": [min(loads), max(loads)] if loads else None,
        "config": asdict(size.config),
        "layout": size.key,
        "tokens": size.layout.tokens,
        "seeds": size.seeds,
        "rounds": len(done),
        "rows": [
            {"name": name, **row, **timed.get(name, {})}
            | ({"shares": shares[name]} if name in shares else {})
            | {"stamp": stamps[name]}
            for name, row in rows.items()
        ],
    }


def judged(
    size: Size,
    model: LumosX,
    variants: list[Variant],
    made: "Callable[[Size, Variant], Path] | None" = None,
) -> tuple[dict[str, Row], dict[str, Run], dict[str, Path]]:
    """A row for every variant, what can be run of those that pass, and the files they run.

    A variant that fails in any way, or its gate, has a row that says so, and is not run.
    """
    judge = Judge(size, model)
    rows: dict[str, Row] = {}
    runs: dict[str, Run] = {}
    files: dict[str, Path] = {}
    for variant in variants:
        name = variant.name
        rows[name] = {"precision": variant.precision, "references": variant.references}
        say(f"{size.name}: {name}")
        try:
            files[name] = (made or made_file)(size, variant)
            run = variant.run(variant.of(size), model, files[name])
            error, gate = judge.error(variant, run()), judge.gate(variant)
        except Exception as failure:  # whatever it is, the others are not to suffer
            rows[name]["failed"] = reason_of(failure)
            say(f"{name} failed: {reason_of(failure)}")
            continue
        rows[name] |= {"relative_error": error, "gate": gate, "passed": error <= gate}
        if error <= gate:
            runs[name] = run
        else:
            rows[name]["failed"] = f"errs by {error:.1e}, its gate is {gate:.1e}; it is not timed"
            rows[name]["relative_error"] = error if error < float("inf") else None
            say(f"{name}: {rows[name]['failed']}")
    return rows, runs, files


def made_file(size: Size, variant: Variant) -> Path:
    """The graph or package of a variant, made in a process of its own if it is not there."""
    if variant.make is None:
        return Path()
    folder = made_folder(size, variant)
    key, file = folder.name, folder / f"model{variant.suffix}"
    if not file.is_file():
        say(f"making {variant.name}, once")
        partial_folder = folder.with_name(f".{key}.partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir(parents=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.speed.side_by_side",
            "--make",
            size.name,
            variant.name,
        ]
        done = subprocess.run(
            [*command, str(partial_folder / file.name)],
            capture_output=True,
            text=True,
            timeout=MAKING_S,
        )
        if done.returncode:
            raise RuntimeError(next(reversed(done.stderr.strip().splitlines()), "it was killed"))
        os.replace(partial_folder, folder)
    return file


def made_folder(size: Size, variant: Variant) -> Path:
    """Named by all that its content depends on."""
    code = stamp_digest(variant.making_sources)
    versions = {name: machine().get(name) for name in (*variant.versions, "instructions")}
    return CACHE / "made" / digest_of([asdict(size.config), variant.name, code, versions])


def make(size: Size, variant: Variant, file: Path) -> None:
    assert variant.make is not None
    variant.make(model_of(size), file)


def bases_of(variant: Variant) -> list[str]:
    """What a variant is compared with: the release in float32, in its own precision, and Wan2.1."""
    own = [f"{BASELINE}, bf16"] if variant.precision == "bf16" else []
    return [name for name in (BASELINE, *own, WAN) if name != variant.name]


def asdict_of(variant: Variant) -> list[str]:
    """What makes a variant's rounds others."""
    return [variant.name, stamp_digest(variant.all_sources)]


def digest_of(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def as_text(name: str, record: Row) -> str:
    """A size's rows for a terminal."""
    kinds = profiles.KINDS
    head = ["", "ms", "as fast as released", "in its precision", "as Wan2.1", "error"]
    head += [f"% {kind}" for kind in kinds]
    table = [head]
    for row in record["rows"]:
        if "median_ms" not in row:
            table.append([row["name"], "-", row.get("failed", ""), *[""] * (len(head) - 3)])
            continue
        ratios = row["times_as_fast_as"]
        shares = row.get("shares", {})
        table.append(
            [
                row["name"],
                f"{row['median_ms']:.1f}",
                _ratio(ratios.get(BASELINE)),
                _ratio(ratios.get(f"{BASELINE}, {row['precision']}")),
                _ratio(ratios.get(WAN)),
                f"{row['relative_error']:.1e}",
                *(f"{100 * shares[kind]:.0f}" if kind in shares else "-" for kind in kinds),
            ]
        )
    threads, load = record["machine"]["threads"], record["load_average"]
    return (
        f"\n{name}: {record['layout']}, {record['tokens']} tokens, {record['seeds']} seeds, "
        f"{threads} threads, {record['rounds']} rounds, load average {load}\n" + aligned(table)
    )


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


say = partial(print, file=sys.stderr, flush=True)

if __name__ == "__main__":
    sys.exit(main())

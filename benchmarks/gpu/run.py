"""Every figure of the GPU, measured in one place; runs from the repository root, uninstalled.

    python -m benchmarks.gpu.run works -o FOLDER        1  does it work, and right?
    python -m benchmarks.gpu.run attention -o FOLDER    2  which attention is fastest?
    python -m benchmarks.gpu.run headline -o FOLDER     3  how fast is a step?
    python -m benchmarks.gpu.run rest -o FOLDER         4  VAE, text encoder, a video end to end
    python -m benchmarks.gpu.run package -o FOLDER      5  the whole model as a package
    python -m benchmarks.gpu.run products -o FOLDER     6  products, row kernels, tiles
    python -m benchmarks.gpu.run all -o FOLDER             one after the other
    python -m benchmarks.gpu.run all --rehearse            on a CPU, tiny, kernels interpreted

A call takes at most ten minutes. Everything it leaves is in FOLDER: rows.jsonl, a row appended as
soon as it is found, and tiles.json with what won a sweep (`benchmarks.gpu.adopt` puts that where
kernels look it up). What stands there for the same GPU, software, tiles and code of a stage is not
measured again (--again does), so a run that is cut off goes on where it was; one that runs out of
time names the rows it misses. Needs torch, triton, numpy, pillow and safetensors; `rest` also what
runs an engine.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.gpu.calls import CALLS, OTHER_ROW_LIMIT_S, ROW_LIMIT_S, STAGES

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("call", nargs="?", choices=[*CALLS, "all"], default="all")
    parser.add_argument("--stage", nargs="+", choices=STAGES, help="these, in place of a call's")
    parser.add_argument(
        "-o", "--out", type=Path, help="benchmarks/results/gpu; rehearsals: out/rehearsal"
    )
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--minutes", type=float, help="for the call, in place of its own")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--worker", nargs=2, type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    default = ROOT / ("out/rehearsal" if given.rehearse else "benchmarks/results/gpu")
    out = (given.out or default).resolve()
    if given.worker:
        return _work(given.stage, out, given.rehearse, *given.worker)
    since = time.time() if given.again else 0.0
    worst = 0
    for minutes, stages in _calls(given):
        worst = max(worst, _supervise(stages, out, given.rehearse, minutes, since))
    return worst


def _calls(given: argparse.Namespace) -> list[tuple[float, list[str]]]:
    """Minutes and stages of every call; a rehearsal's are one process, for it is over soon."""
    chosen = [CALLS[name] for name in (CALLS if given.call == "all" else (given.call,))]
    calls = [(call.minutes, list(call.stages)) for call in chosen]
    if given.stage:
        calls = [(max(call.minutes for call in chosen), given.stage)]
    if given.rehearse:
        calls = [(sum(minutes for minutes, _ in calls), [s for _, own in calls for s in own])]
    return [(minutes if given.minutes is None else given.minutes, own) for minutes, own in calls]


def _supervise(stages: list[str], out: Path, rehearse: bool, minutes: float, since: float) -> int:
    from benchmarks.gpu.supervise import supervise

    deadline = time.time() + 60 * minutes
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--stage", *stages, "--out", str(out)]
    command += ["--rehearse"] * rehearse + ["--worker", str(deadline), str(since)]
    limits = {stage: ROW_LIMIT_S.get(stage, OTHER_ROW_LIMIT_S) for stage in stages}
    return supervise(command, out, deadline, limits)


def _work(stages: list[str], out: Path, rehearse: bool, deadline: float, since: float) -> int:
    if rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported
    from benchmarks.gpu.worker import work

    try:
        return work(stages, out, rehearse, deadline, since)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

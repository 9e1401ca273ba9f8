"""Every figure of the GPU, measured in one place; runs from the repository root, uninstalled.

    python -m benchmarks.gpu.run                          all stages
    python -m benchmarks.gpu.run --stage a g b            some, in this order
    python -m benchmarks.gpu.run --rehearse               on a CPU, tiny, kernels interpreted

    a  every operation against float64          e  matrix products in e4m3
    b  self-attention                           f  the whole model, and where its time goes
    c  cross-attention                          g  tiles: sweeps, winners into kernels/tiles.json
    d  row kernels, in TB/s

Rows are appended to OUT/rows.jsonl at once. What stands there for the same GPU, software, code and
tiles is not measured again (--again does), so a run that is cut off goes on where it was. Each
stage has --minutes; one that runs out names the rows it misses. Needs torch, triton, numpy,
pillow and safetensors.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGES = "agbcdef"  # sweeps come early: what is measured later uses the winners
ROW_LIMIT_S = {"f": 400.0}  # for one row, compilation included
OTHER_ROW_LIMIT_S = 90.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", nargs="+", choices=sorted(STAGES), default=list(STAGES))
    parser.add_argument(
        "--out", type=Path, help="benchmarks/results/gpu; rehearsals: out/rehearsal"
    )
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.0, help="for each stage")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--worker", nargs=2, type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    default = ROOT / ("out/rehearsal" if arguments.rehearse else "benchmarks/results/gpu")
    out = arguments.out or default
    if arguments.worker:
        return _work(arguments.stage, out, arguments.rehearse, *arguments.worker)
    since = time.time() if arguments.again else 0.0
    # a rehearsal is over soon: one process does everything
    runs = [arguments.stage] if arguments.rehearse else [[stage] for stage in arguments.stage]
    worst = 0
    for stages in runs:
        worst = max(worst, _supervise(stages, out, arguments, since))
    return worst


def _supervise(stages: list[str], out: Path, arguments: argparse.Namespace, since: float) -> int:
    from benchmarks.gpu.supervise import supervise

    deadline = time.time() + 60 * arguments.minutes * len(stages)
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--stage", *stages, "--out", str(out)]
    command += ["--rehearse"] * arguments.rehearse + ["--worker", str(deadline), str(since)]
    limit = max(ROW_LIMIT_S.get(stage, OTHER_ROW_LIMIT_S) for stage in stages)
    return supervise(command, out, deadline, limit, arguments.rehearse)


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

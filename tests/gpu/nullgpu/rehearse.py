"""Run every stage on the null GPU of one torch, and keep what was found.

    python -m tests.gpu.nullgpu.rehearse 2.13.0 [-o benchmarks/results/nullgpu.json]
        [--blocks 2 8] [--calls works]

Needs `build.sh` to have built it (`make nullgpu` does both).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PRECISIONS = ("bf16", "fp8", "fp8-attention")
Facts = dict[str, Any]


def home(torch: str) -> Path:
    """The folder that `build.sh` makes for a version of torch."""
    return Path(os.environ.get("NULLGPU", ROOT / "out/nullgpu")) / torch


def stage(torch: str, *words: object) -> Facts:
    """Run a stage in a process of its own. Raises RuntimeError with what it wrote last."""
    command = [str(home(torch) / "python"), "-m", "tests.gpu.nullgpu.stages", *map(str, words)]
    with tempfile.TemporaryDirectory() as cache:
        surroundings = os.environ | {"LUMOSX_CACHE": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        surroundings.pop("TRITON_INTERPRET", None)
        done = subprocess.run(command, capture_output=True, text=True, env=surroundings, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr[-3000:]}")
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def rehearse(
    torch: str, blocks: Sequence[int] = (2,), calls: Sequence[str] = ()
) -> Iterator[Facts]:
    """All stages, packages of so many blocks, and calls of the GPU suite; yields what is found."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("driver", "fake", "operators"):
            yield stage(torch, name)
        for count in blocks:
            for precision in PRECISIONS if count == min(blocks) else PRECISIONS[:1]:
                built = stage(torch, "package", precision, count, folder)
                path = built.pop("path")
                yield built | {"precision": precision, "blocks": count}
                yield stage(torch, "serve", path) | {"precision": precision, "blocks": count}
                if (precision, count) == ("bf16", min(blocks)):
                    yield stage(torch, "threads", path)
                Path(path).unlink()
        for name in ("engine", "training"):
            part = Path(folder, name)
            part.mkdir()
            yield stage(torch, name, part)
        if calls:
            part = Path(folder, "suite")
            part.mkdir()
            yield stage(torch, "suite", part, *calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("torch", nargs="?", default="2.13.0")
    parser.add_argument("--blocks", type=int, nargs="+", default=[2])
    parser.add_argument("--calls", nargs="*", default=[], help="of benchmarks.gpu, at full size")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    if not (home(given.torch) / "python").exists():
        parser.error(f"torch {given.torch} has no null GPU; make nullgpu TORCH={given.torch}")
    found = []
    for facts in rehearse(given.torch, given.blocks, given.calls):
        print(json.dumps(facts), file=sys.stderr, flush=True)
        found.append(facts)
    if given.out:
        from benchmarks.records import write

        record = json.loads(given.out.read_text("utf-8")) if given.out.exists() else {}
        write(record | {"torch": record.get("torch", {}) | {given.torch: found}}, given.out)


if __name__ == "__main__":
    main()

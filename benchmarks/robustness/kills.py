"""Two hundred kills at random moments: a command that is given again goes on and ends the same.

    python -m benchmarks.robustness.kills -o benchmarks/results/kills.json
    python -m benchmarks.robustness.kills --kills 10 --only train

build, train, calibrate and bench run in small in a process of their own, which is killed (SIGKILL,
with all its children) after a random time up to a tenth more than it would take. Then the same
command is given in the same folder, until it ends. What it leaves must be, byte for byte, what an
undisturbed run leaves, and nothing half-made beside it. In `build` the export of the graph is
replaced by a slow copy of its result. Exit status 1 where something differs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import lumosx_rt as rt
from benchmarks.records import keep
from benchmarks.robustness import toy
from lumosx_rt.artifact.source import random_transformer
from lumosx_rt.bench.run import benchmark
from lumosx_rt.builder import calibrate as calibrating
from lumosx_rt.builder import train as training
from lumosx_rt.export.onnx import graph
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.encoders.random import random_components
from lumosx_rt.reference.training.latents import build_cache

CONFIG = LumosXConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=64, text_len=48)
DEFAULTS = {"frames": 5, "height": 32, "width": 48, "steps": 4, "shift": 3.0, "guidance": 3.0}
RECIPE = """
from lumosx_rt.reference.training.recipe import Recipe, Stage
from benchmarks.robustness.toy import CONFIG, SIZE, Toy

def brief():
    stage = Stage(name="brief", steps=12, data=Toy(4, name="toy"), streams=2, seeds=2)
    return Recipe(model=CONFIG, size=SIZE, stages=(stage,), save_every=1, log_every=1)
"""
TIMELESS = ("second", "memory_bytes", "folder")  # times, and where a run lies


class Job(NamedTuple):
    """run: given the place (what all runs read) and the run's own folder; left: what of that folder
    must be the same every time, {name: digest}."""

    run: Callable[[Path, Path], None]
    left: Callable[[Path], dict[str, str]]


# -- the four commands, in small ------------------------------------------------------------------


def prepare(place: Path) -> None:
    """What runs read: a bundle, scenes, a recipe, and the graph that `build` copies."""
    text_encoder, tokenizer, vae = random_components(0)
    save_bundle(
        place / "bundle",
        transformer=random_transformer(CONFIG, 0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        defaults=DEFAULTS,
    )
    for i in (0, 5, 6):
        toy.Toy().scene(i).save(place / "scenes" / f"toy{i}")
    (place / "recipe.py").write_text(RECIPE)
    build_cache(place / "latents" / "toy", toy.Toy(4, name="toy"), toy.SIZE, *toy.encoders())
    rt.build(place / "bundle", place / "engine")


def run_build(place: Path, folder: Path) -> None:
    facts = json.loads((place / "engine" / "report.json").read_text())["build"]

    def export_onnx(model: Any, path: Path, **options: Any) -> dict[str, Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (place / "engine" / "transformer").iterdir():
            content = file.read_bytes()
            with (path.parent / file.name).open("wb") as out:
                for at in range(0, len(content), 1 << 17):
                    out.write(content[at : at + (1 << 17)])
                    time.sleep(0.02)
        return {name: facts[name] for name in ("operators", "half_precision_matrices", "opset")}

    graph.export_onnx = export_onnx
    rt.build(place / "bundle", folder / "engine")


def run_train(place: Path, folder: Path) -> None:
    (folder / "run").mkdir(exist_ok=True)
    if not (folder / "run" / "latents").is_symlink():
        (folder / "run" / "latents").symlink_to(place / "latents")
    training.train(f"{place / 'recipe.py'}:brief", folder / "run", processes=0)


def run_calibrate(place: Path, folder: Path) -> None:
    out = folder / "calibration.json"
    if not out.exists():
        scenes = str(place / "scenes")
        calibrating.calibrate(place / "bundle", out, scenes=scenes, bins=2, budget=35)


def run_bench(place: Path, folder: Path) -> None:
    tiny = Path(__file__).parents[2] / "checkpoints" / "tiny"
    benchmark(tiny, folder / "bench", scene_list="ci", scenes=4, sampling={"steps": 2})


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def files_of(folder: Path) -> dict[str, str]:
    """Every file with its content; facts that name times are left out of JSON."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = (
                [json.loads(line) for line in content.decode().splitlines()]
                if (path.suffix == ".jsonl")
                else [json.loads(content)]
            )
            content = json.dumps([timeless(line) for line in lines], sort_keys=True).encode()
        found[path.relative_to(folder).as_posix()] = digest(content)
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(t in k for t in TIMELESS)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def left_by_build(folder: Path) -> dict[str, str]:
    return {n: d for n, d in files_of(folder).items() if not n.endswith(("report.json", ".md"))}


def left_by_train(folder: Path) -> dict[str, str]:
    """Weights and metrics; a picture and optimizer states may be drawn and written any time."""
    names = ("bundle/", "metrics.jsonl")
    return {n: d for n, d in files_of(folder).items() if any(part in n for part in names)}


JOBS = {
    "build": Job(run_build, left_by_build),
    "train": Job(run_train, left_by_train),
    "calibrate": Job(run_calibrate, files_of),
    "bench": Job(run_bench, files_of),
}


# -- kills ----------------------------------------------------------------------------------------


def started(call: Callable[[], None]) -> int:
    """A child of this process, in a group of its own, that makes a call and ends."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    status = 1
    try:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        call()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def lived(child: int, seconds: float) -> int | None:
    """Exit status of a child; None: it was killed after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.waitpid(child, 0)
    return None


def disturbed(
    name: str, place: Path, kills: int, seed: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Runs of one job, killed so many times in all; returns what came of it."""
    job, draw = JOBS[name], random.Random(f"{name} {seed}")
    whole = place / name / "whole"
    whole.mkdir(parents=True)
    begun = time.monotonic()
    status = lived(started(lambda: job.run(place, whole)), 600)
    seconds = time.monotonic() - begun
    if status != 0:
        raise SystemExit(f"{name}: an undisturbed run ends with {status}")
    wanted = job.left(whole)
    found: dict[str, Any] = {"seconds": round(seconds, 1), "kills": 0, "finished": 0, "wrong": []}
    life = 0
    while found["kills"] < kills:
        folder = place / name / f"life{life}"
        folder.mkdir()
        while True:
            patience = draw.uniform(0, 1.1 * seconds) if found["kills"] < kills else 600.0
            status = lived(started(lambda folder=folder: job.run(place, folder)), patience)  # type: ignore[misc]
            if status is not None:
                break
            found["kills"] += 1
        made = job.left(folder)
        if status != 0 or made != wanted:
            differ = sorted(n for n in {*made, *wanted} if made.get(n) != wanted.get(n))
            found["wrong"].append({"life": life, "status": status, "differ": differ})
        found["finished"] += 1
        life += 1
        shutil.rmtree(folder)
        report(f"{name}: {found['kills']} kills, {found['finished']} finished, {found['wrong']}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=JOBS, action="append")
    given = parser.parse_args(arguments)
    names = given.only or list(JOBS)
    with tempfile.TemporaryDirectory() as root:
        place = Path(root)
        os.environ["LUMOSX_CACHE"] = str(place / "cache")
        if lived(started(lambda: prepare(place)), 900) != 0:
            raise SystemExit("what the runs read could not be made")
        jobs = {
            name: disturbed(
                name,
                place,
                given.kills // len(names),
                given.seed,
                lambda line: print(line, file=sys.stderr, flush=True),
            )
            for name in names
        }
    record = {
        "kills": sum(found["kills"] for found in jobs.values()),
        "finished": sum(found["finished"] for found in jobs.values()),
        "wrong": sum(len(found["wrong"]) for found in jobs.values()),
        "seed": given.seed,
        "jobs": jobs,
    }
    keep(record, given.out)
    return 1 if record["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

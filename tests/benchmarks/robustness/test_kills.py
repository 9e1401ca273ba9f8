"""A few kills of real commands, and that the suite sees a command which is not careful."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAD = """
import json, os, sys, time
from pathlib import Path
from benchmarks.robustness import kills
place = Path(sys.argv[1])
os.environ["LUMOSX_CACHE"] = str(place / "cache")
quiet = lambda line: None
"""
REAL = """
from lumosx_rt.reference.training.latents import build_cache
(place / "recipe.py").write_text(kills.RECIPE)
toy = kills.toy
build_cache(place / "latents" / "toy", toy.Toy(4, name="toy"), toy.SIZE, *toy.encoders())
found = {name: kills.disturbed(name, place, 5, 0, quiet) for name in ("build", "train")}
"""
OWN = """
def careful(place, folder):
    for i in range(8):
        time.sleep(0.03)
        (folder / "half").write_text("x" * i)
        os.replace(folder / "half", folder / f"{i}")

def careless(place, folder):
    for i in range(8):
        if not (folder / f"{i}").exists():
            (folder / f"{i}").write_text("begun")
            time.sleep(0.03)
            (folder / f"{i}").write_text("done")

kills.JOBS |= {f.__name__: kills.Job(f, kills.files_of) for f in (careful, careless)}
found = {name: kills.disturbed(name, place, 12, 0, quiet) for name in ("careful", "careless")}
"""


@pytest.fixture
def killed(tmp_path):
    """What came of jobs. They are forked, and not from a process with the tests' threads."""

    def run(script: str) -> dict:
        words = [sys.executable, "-c", f"{HEAD}{script}\nprint(json.dumps(found))", tmp_path]
        done = subprocess.run(
            words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.slow
def test_build_and_train_go_on_after_kills(killed, micro, micro_bundle, tmp_path):
    (tmp_path / "bundle").symlink_to(micro_bundle)
    (tmp_path / "engine").symlink_to(micro.folder)
    for name, found in killed(REAL).items():
        assert found["kills"] >= 5 and found["finished"] >= 1 and not found["wrong"], (name, found)


@pytest.mark.slow
def test_a_careless_command_is_seen(killed):
    found = killed(OWN)
    assert found["careful"]["kills"] == 12 and not found["careful"]["wrong"]
    wrong = found["careless"]["wrong"]
    assert wrong and all(each["status"] == 0 and each["differ"] for each in wrong)

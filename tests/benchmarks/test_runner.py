"""`python -m benchmarks`: every program is listed and can be run by its name."""

import subprocess
import sys
from pathlib import Path

from benchmarks.__main__ import programs

ROOT = Path(__file__).parents[2]


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_program_is_listed_with_what_it_does() -> None:
    listed = ran()
    assert listed.returncode == 0
    for name, says in programs().items():
        assert says and f"{name} " in listed.stdout and says in listed.stdout
    assert {"speed.runtime", "quality.fp8", "gpu.run", "robustness.kills"} <= set(programs())


def test_a_program_gets_its_own_words() -> None:
    done = ran("tables", "--help")
    assert done.returncode == 0 and "--check" in done.stdout
    wrong = ran("speed.none")
    assert wrong.returncode == 2 and "'speed.none'" in wrong.stderr

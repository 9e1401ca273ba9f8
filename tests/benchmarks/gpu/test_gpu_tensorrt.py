"""benchmarks/gpu/tensorrt.sh: every command it would run is one that exists; it fails early."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer

from lumosx_rt.cli.main import app
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu" / "tensorrt.sh"
LIMITS = {  # of the presets' own video sizes, in tokens
    preset: Limits.around(size, max_references=16, max_seeds=4)
    for preset, size in {"tiny": (5, 8, 18), "1.3b": (21, 30, 52)}.items()
}


@pytest.fixture(scope="module", autouse=True)
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield


def script(*words: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": path}
    return subprocess.run(
        ["bash", SCRIPT, *words], capture_output=True, text=True, env=environment, timeout=120
    )


def accepted(words: list[str]) -> dict[str, object]:
    """The parameters of a command line. Raises what its parser raises; runs nothing."""
    if words[0] == "lumosx-rt":
        group = typer.main.get_command(app)
        command = group.commands[words[1]]  # type: ignore[attr-defined]
        return command.make_context(words[1], words[2:]).params
    assert words[:3] == ["python", "-m", "benchmarks.gpu.time_engine"]
    from benchmarks.gpu.time_engine import arguments

    return vars(arguments().parse_args(words[3:]))


def planned() -> list[list[str]]:
    done = script("--dry-run", "engines/some where")
    assert done.returncode == 0 and done.stderr == ""
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_every_command_is_accepted() -> None:
    commands = planned()
    assert len(commands) == 16
    built, loaded = set(), []
    for words in commands:
        given = accepted(words)
        if words[1] == "build":
            assert given["preset"] in LIMITS and given["init"] == "random"
            built.add(str(given["out"]))
        else:
            loaded.append(str(given["engine"]))
            assert str(given["engine"]) in built  # by then
        if "layout" in given:
            name = Path(str(given["engine"])).name
            limits = LIMITS[name.rpartition("-")[0]].table()
            layout = SceneLayout.from_key(str(given["layout"]))
            sizes = {"frames": layout.video_frames, "height": layout.height,
                     "width": layout.width, "references": layout.references}  # fmt: skip
            assert all(limits[n][0] <= size <= limits[n][1] for n, size in sizes.items())
    assert len(built) == 4 and set(loaded) == built
    verified = [Path(words[2]).name for words in commands if words[1] == "verify"]
    assert verified == ["tiny-tensorrt", "tiny-torch"]


@pytest.mark.parametrize(
    "wrong",
    [["lumosx-rt", "build", "--presets", "tiny"], ["lumosx-rt", "verify"],
     ["python", "-m", "benchmarks.gpu.time_engine", "engine"]], ids=" ".join,
)  # fmt: skip
def test_a_wrong_command_is_not(wrong: list[str]) -> None:
    with pytest.raises(BaseException) as found:  # typer has a click of its own
        accepted(wrong)
    assert type(found.value).__name__ in {"NoSuchOption", "MissingParameter", "SystemExit"}


def test_it_fails_early_and_says_why(tmp_path: Path) -> None:
    done = script(str(tmp_path / "out"))
    assert done.returncode == 1 and "there is no lumosx-rt here" in done.stderr
    assert "pip install" in done.stderr and done.stdout == ""
    done = script("--fast")
    assert done.returncode == 2 and "'--fast'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_builds_nothing(tmp_path: Path) -> None:
    done = script(str(tmp_path / "out"), path=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    assert done.returncode == 1 and "torch finds no GPU" in done.stderr
    assert done.stdout == "" and not (tmp_path / "out").exists()


def test_an_engine_is_timed(micro_engine, fault, monkeypatch) -> None:
    from benchmarks.gpu import time_engine

    clock = iter([0, 5, *(10, 11), *(20, 24), *(30, 32)])  # seconds: bound, then three steps
    monkeypatch.setattr(time_engine, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    steps = fault()
    facts = time_engine.time_engine(micro_engine, "2x3x9+1+2", seeds=2, repeats=3)
    assert len(steps) == time_engine.WARM_UP + 3 and facts["bound_and_warm_ms"] == 5000
    assert facts["median_ms"] == 2000 and facts["range_ms"] == [1000, 4000]
    assert facts["backend"] == "onnxruntime" and facts["precision"] == "fp32"


def test_no_times_for_what_is_not_finite(micro_engine, fault) -> None:
    from benchmarks.gpu.time_engine import time_engine

    fault(velocity=lambda value, call: value * float("nan"))
    with pytest.raises(SystemExit, match="not finite"):
        time_engine(micro_engine, "2x3x9+1+2", repeats=1)

"""The wheel: what is in it, and that it works where nothing but what it declares is installed."""

import json
import os
import shutil
import subprocess
import venv
import zipfile
from email import message_from_string
from importlib.metadata import version
from pathlib import Path

import pytest

import lumosx_rt as rt
from lumosx_rt.artifact.defaults import SMALL
from lumosx_rt.artifact.source import random_transformer
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.encoders.random import random_components
from tests.helpers.installed import ROOT, Installed, build_wheel

FOLDERS = ("reference", "kernels", "export", "calibration")
DATA = {
    "lumosx_rt/py.typed",
    "lumosx_rt/kernels/tiles.json",
    "lumosx_rt/calibration/scenes/world-v1.json",
}
ANSWER = """
import json, sys, lumosx_rt
from importlib.metadata import version
from lumosx_rt.calibration.samples import find_scenes
print(json.dumps({
    "home": lumosx_rt.__file__, "version": version("lumosx-rt"), "path": sys.path,
    "scenes": len(find_scenes("world-v1", 2).scenes),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def runner(wheel, tmp_path_factory) -> Installed:
    """What a machine needs that only runs engines."""
    return Installed.of(wheel, tmp_path_factory.mktemp("runner"), "cpu")


@pytest.fixture(scope="module")
def builder(wheel, tmp_path_factory) -> Installed:
    return Installed.of(wheel, tmp_path_factory.mktemp("builder"), "cpu", "build")


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory) -> Path:
    """One layer of random weights, with encoders: what a build does takes seconds."""
    folder = tmp_path_factory.mktemp("bundle")
    sizes = LumosXConfig(dim=24, ffn_dim=48, num_heads=1, num_layers=1, text_dim=64, text_len=256)
    text_encoder, tokenizer, vae = random_components(0)
    save_bundle(
        folder,
        transformer=random_transformer(sizes, 0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        defaults=SMALL | {"frames": 5, "height": 64, "width": 96, "steps": 2},
    )
    return folder


def sources() -> dict[str, Path]:
    """Python files of the checkout, by their place in the package."""
    found = {f"{folder}/{file.relative_to(ROOT / folder)}": file
             for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}  # fmt: skip
    walks = os.walk(ROOT / "lumosx_rt", followlinks=False)
    own = [Path(base, name) for base, _, files in walks for name in files if name.endswith(".py")]
    found |= {str(file.relative_to(ROOT / "lumosx_rt")): file for file in own}
    return {f"lumosx_rt/{name}": file for name, file in found.items()}


# -- what is in it ------------------------------------------------------------------------------


def test_all_packages_are_in_it_and_nothing_else(names) -> None:
    assert names == sources().keys() | DATA


def test_links_are_real_files(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, file in sources().items():
            assert archive.read(name) == file.read_bytes(), name
        kinds = {(info.external_attr >> 16) & 0o170000 for info in archive.infolist()}
    assert kinds <= {0o100000, 0}


def test_every_file_that_code_reads_beside_itself_is_in_it(names) -> None:
    kept = {"lumosx_rt/calibration/tiny"}  # an example of a result, which nothing reads
    for folder in (*FOLDERS, "lumosx_rt"):
        base = ROOT / folder
        for file in base.rglob("*"):
            name = f"lumosx_rt/{file.relative_to(ROOT if folder != 'lumosx_rt' else base)}"
            if file.suffix in (".json", ".typed", ".c", ".html", ".css", ".js"):
                assert name in names or any(name.startswith(part) for part in kept), name


def test_its_metadata(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" in name]
        about = {Path(name).name: archive.read(name).decode() for name in names}
    metadata = message_from_string(about["METADATA"])
    assert metadata["Version"] == rt.__version__
    assert metadata["License-Expression"] == "Apache-2.0" and "LICENSE" in about
    assert "lumosx-rt = lumosx_rt.cli.main:main" in about["entry_points.txt"]
    assert {"cpu", "cuda", "tensorrt", "build", "train"} < set(metadata.get_all("Provides-Extra"))


def test_the_version_is_the_installed_one(run) -> None:
    assert version("lumosx-rt") == rt.__version__ == run("--version").stdout.strip()


# -- that it works ------------------------------------------------------------------------------


def test_it_knows_its_version_and_finds_its_data(runner) -> None:
    said = json.loads(runner.python("-c", ANSWER).stdout)
    assert said["home"].startswith(str(runner.packages))
    assert said["version"] == rt.__version__ and said["scenes"] == 2
    assert not any(str(ROOT) in path for path in said["path"])
    assert not (runner.packages / "onnx").exists() and not (runner.packages / "pytest").exists()


def test_it_runs_with_what_it_declares(runner, drawn) -> None:
    size = ("--frames", 5, "--height", 64, "--width", 96, "--steps", 2)
    scene = ROOT / "samples" / "drawn" / "two"
    made = runner.run("generate", drawn.folder, scene, *size, "-o", "out")
    assert all((runner.place / f).stat().st_size > 1000 for f in made.stdout.split())
    assert "--scenes" in runner.run("calibrate", "--help").stdout


@pytest.mark.slow
def test_it_builds_with_what_it_declares(builder, small_bundle) -> None:
    builder.run("build", small_bundle, "--self-contained", "-o", "engine")
    assert (builder.place / "engine" / "manifest.json").is_file()


# -- installed by pip, with a network -----------------------------------------------------------


@pytest.mark.slow
def test_an_empty_environment_is_enough(wheel, tmp_path) -> None:
    place = tmp_path / "place"
    shutil.copytree(ROOT / "checkpoints" / "tiny", place / "checkpoints" / "tiny")
    shutil.copytree(ROOT / "samples", place / "samples")
    shutil.copytree(ROOT / "examples", place / "examples")
    venv.create(tmp_path / "venv", with_pip=True)
    surroundings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    surroundings |= {"LUMOSX_CACHE": str(tmp_path / "cache")}

    def run(program: str, *words: object) -> str:
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / program, *map(str, words)],
            cwd=place,
            env=surroundings,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{program} {words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run("pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[cpu,build,train]")
    assert run("lumosx-rt", "--version").strip() == rt.__version__
    run("lumosx-rt", "build", "checkpoints/tiny", "-o", "engine")
    run("lumosx-rt", "verify", "engine", "samples/drawn/two")
    made = run("lumosx-rt", "generate", "engine", "samples/drawn/two", "-o", "out").split()
    assert len(made) == 2 and all(Path(place, file).is_file() for file in made)
    words = ("calibrate", "checkpoints/tiny", "--count", 2, "--steps", 4, "-o", "calibration.json")
    run("lumosx-rt", *words)
    assert json.loads((place / "calibration.json").read_text())["sites"]
    run("lumosx-rt", "bench", "engine", "--list", "ci", "--scenes", 2, "-o", "bench")
    assert json.loads(run("lumosx-rt", "doctor", "--json"))["problems"] == []
    examples = sorted((ROOT / "examples").glob("*.py"))
    for file in examples:
        scene = "examples/scenes/pirate-and-knight"
        run("python", f"examples/{file.name}", "engine", scene, "--steps", 4)
    assert len(examples) == 5

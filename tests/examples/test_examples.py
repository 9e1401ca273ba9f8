"""The examples run: scripts and notebook on the small engine, the recipe up to its data."""

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import read_manifest
from tests.examples.notebooks import code_cells, execute

EXAMPLES = Path(__file__).parents[2] / "examples"
SCENE = EXAMPLES / "scenes" / "pirate-and-knight"
NOTEBOOK = EXAMPLES / "notebooks" / "binding.ipynb"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """`script(name, *words, code=None)`: run an example as a program; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: object, code: int | None = None) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        except SystemExit as done:
            assert done.code == code
        else:
            assert code is None
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def engine(micro, tmp_path_factory) -> Path:
    """The small engine with defaults that take no time."""
    folder = shutil.copytree(micro.folder, tmp_path_factory.mktemp("engine") / "small")
    manifest = read_manifest(folder)
    few = {"frames": 5, "height": 64, "width": 96, "steps": 3}
    replace(manifest, defaults=manifest.defaults | few).write(folder)
    return folder


@pytest.fixture
def two_scenes(tmp_path) -> tuple[Path, Path]:
    """A good scene, and one whose word is not in its caption."""
    bad = shutil.copytree(SCENE, tmp_path / "bad")
    text = (bad / "scene.toml").read_text()
    (bad / "scene.toml").write_text(text.replace('word = "suit"', 'word = "cape"'))
    return SCENE, bad


def test_every_script_is_short_says_what_it_shows_and_is_run() -> None:
    assert len(SCRIPTS) == 5
    tests = Path(__file__).read_text()
    for file in SCRIPTS:
        text = file.read_text()
        assert len(text.splitlines()) < 40 and text.startswith('"""'), file.name
        assert f"python examples/{file.name} " in text, file.name
        assert f'script("{file.stem}"' in tests, file.name
        assert f"`{file.name}`" in (EXAMPLES / "README.md").read_text(), file.name


def test_the_scene_is_right_and_needs_its_tables() -> None:
    scene = rt.Scene.load(SCENE)
    errors, warnings = scene.problems()
    assert not errors and len(warnings) == 2 and "bucket" in " ".join(warnings)
    words = [[reference.word for reference in subject.references] for subject in scene.subjects]
    assert words == [["knight", "bucket", "helmet", "suit"], ["pirate", "bucket", "helmet"]]
    assert sum(file.stat().st_size for file in SCENE.iterdir()) < 10_000


def test_photos(script, engine, two_scenes, tmp_path) -> None:
    good, bad = two_scenes
    words = ("--steps", 2, "--seeds", 3, 4, "-o", tmp_path / "out")
    said = script("photos", engine, good, *words)
    made = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert made == ["pirate-and-knight-seed3.mp4", "pirate-and-knight-seed4.mp4"]
    assert all(name in said for name in made)
    assert "cape" in script("photos", engine, bad, *words, code=1)


def test_previews(script, engine, tmp_path) -> None:
    said = script("previews", engine, SCENE, "--steps", 2, "-o", tmp_path / "out")
    made = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert made == ["pirate-and-knight.mp4", "step-001.png", "step-002.png"]
    assert "step 1 of 2, noise level" in said


def test_many(script, engine, two_scenes, tmp_path) -> None:
    words = (*two_scenes, "--steps", 2, "--seeds", 0, 1, "-o", tmp_path / "out")
    said = script("many", engine, *words)
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert said.count("cape") == 2 and "'videos': 2" in said and "'refused': 2" in said


def test_certificate(script, engine, copied) -> None:
    said = script("certificate", copied(engine), SCENE, "--steps", 2, code=0)
    assert "pirate-and-knight: final latents differ by" in said and "would show: " in said
    assert said.endswith("passed\n")


def test_shortcuts(script, engine) -> None:
    lines = script("shortcuts", engine, SCENE).splitlines()
    changes = [float(line.partition("mean change ")[2].split()[0]) for line in lines]
    assert len(changes) == 3 and changes[0] == 0 and max(changes[1:]) < 100


def test_the_notebook_runs_in_order(engine) -> None:
    parameters = {"ENGINE": engine, "SCENE": SCENE, "SETTINGS": {"seeds": [0], "steps": 2}}
    cells = code_cells(NOTEBOOK)
    shown = execute(cells, **parameters)
    for cell, outputs in zip(cells, shown, strict=True):  # what is committed has the same form
        kinds = [[(out["output_type"], sorted(out.get("data", {}))) for out in made]
                 for made in (cell["outputs"], outputs)]  # fmt: skip
        assert kinds[0] == kinds[1], "".join(cell["source"])
    said = "".join(shown[1][0]["text"])
    assert said == "".join(cells[1]["outputs"][0]["text"])  # of the scene alone


def test_a_cell_that_fails_is_noticed() -> None:
    cell = {"metadata": {}, "source": ["print(missing)\n"]}
    with pytest.raises(NameError):
        execute([cell])


def test_what_the_notebook_shows_is_committed_and_small() -> None:
    text = NOTEBOOK.read_text("utf-8")
    assert len(text) < 150_000 and "/home/" not in text and "/tmp/" not in text
    assert all(cell["execution_count"] for cell in code_cells(NOTEBOOK))
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")


def test_the_recipe_says_which_data_it_wants(run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = EXAMPLES / "recipes" / "two_phases.py"
    assert "data/single" in run("train", f"{recipe}:two_phases", code=1).stderr

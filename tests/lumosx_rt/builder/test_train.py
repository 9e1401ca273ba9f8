"""`lumosx-rt train`: a recipe of one's own from a file, to a bundle."""

import json
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.robustness import toy
from lumosx_rt.builder.train import train
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.training.latents import build_cache

RECIPE = """
from lumosx_rt.reference.training.recipe import Recipe, Stage
from benchmarks.robustness.toy import CONFIG, SIZE, Toy

def brief():
    stage = Stage(name="brief", steps=3, data=Toy(4, name="toy"), streams=2, seeds=2)
    return Recipe(model=CONFIG, size=SIZE, stages=(stage,), save_every=1, log_every=1)

def nothing():
    return 3

number = 3
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(RECIPE))
    return file


def latents(folder: Path) -> None:
    build_cache(folder / "latents" / "toy", toy.Toy(4, name="toy"), toy.SIZE, *toy.encoders())


def test_a_recipe_becomes_a_bundle(run, recipe, tmp_path):
    out = tmp_path / "run"
    latents(out)
    done = run("train", f"{recipe}:brief", "-o", out, "--json")
    assert json.loads(done.stdout) == {"bundle": str(out / "bundle")}
    assert "parameters" in done.stderr  # the plan comes first
    assert load_transformer(out / "bundle").config == toy.CONFIG
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3
    with Image.open(out / "loss.png") as curve:
        assert curve.width > 100

    told: list[str] = []
    train(f"{recipe}:brief", out, progress=lambda part, *rest: told.append(part))
    assert not told  # it is found again


def test_a_stopped_run_goes_on(recipe, tmp_path):
    out = tmp_path / "run"
    latents(out)
    steps: list[int] = []

    def stop(part: str, done: int, of: int, metrics: dict[str, float]) -> None:
        if part == "brief":
            steps.append(done)
            if steps == [1, 2]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(f"{recipe}:brief", out, progress=stop)
    train(f"{recipe}:brief", out, progress=stop)
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("huge", "tiny and FILE.py:FUNCTION"),
        ("absent.py:brief", "no Python file"),
        ("{recipe}:absent", "no function 'absent'"),
        ("{recipe}:number", "no function 'number'"),
        ("{recipe}:nothing", "returns int"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_reason(name, said, recipe, tmp_path):
    with pytest.raises(LumosXError, match=said):
        train(name.format(recipe=recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()

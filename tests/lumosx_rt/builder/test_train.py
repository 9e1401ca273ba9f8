"""`lumosx-rt train`: a recipe of one's own from a file, to a bundle."""

import json
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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


# -- the file is the user's own -----------------------------------------------------------------

BROKEN = {
    "raise ValueError('one\\ntwo')": "line 1 raises ValueError: one two",
    "import no_such_module": "line 1 raises ModuleNotFoundError",
    "def make(:": "line 1 raises SyntaxError",
    "raise SystemExit(3)": "line 1 raises SystemExit: 3",
    "def make():\n    return 1 / 0": "line 2 raises ZeroDivisionError",
    "def make(size):\n    pass": "'make' is called without anything",
    "make = dict.fromkeys": "'make' is called without anything",
    "x = '\\udcff'.encode()": "line 1 raises UnicodeEncodeError",
    "import helper\nmake = helper.nothing": "helper.py, line 3 raises KeyError",
}


@pytest.mark.parametrize("text", BROKEN)
def test_what_a_recipe_raises_is_one_line(run, text, tmp_path):
    (tmp_path / "broken.py").write_text(text)
    (tmp_path / "helper.py").write_text("\ndef nothing():\n    return {}[1]\n")
    done = run("train", f"{tmp_path}/broken.py:make", "-o", tmp_path / "out", code=1)
    assert BROKEN[text] in done.stderr and "a bug" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_recipe_imports_what_lies_beside_it(tmp_path, monkeypatch, processes):
    """In worker processes too."""
    (tmp_path / "beside.py").write_text(
        "import torch\ntorch.set_num_threads(1)\n"
        "from benchmarks.robustness.toy import CONFIG, SIZE, Toy\n"
        "class Mine(Toy):\n    pass\n"
    )
    (tmp_path / "of_mine.py").write_text(
        textwrap.dedent(RECIPE).replace("import CONFIG, SIZE, Toy", "import CONFIG, SIZE")
        + "\nfrom beside import Mine as Toy\n"
    )
    before, seen = list(sys.path), {}

    def make_bundle(recipe, folder, latents, *, processes, **options):
        data = recipe.stages[0].data
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            seen["name"] = pool.submit(str, data.name).result(60)
            seen["kind"] = pool.submit(type, data).result(60).__module__
        return folder

    monkeypatch.setattr("lumosx_rt.reference.training.pipeline.make_bundle", make_bundle)
    monkeypatch.chdir("/")
    train(f"{tmp_path}/of_mine.py:brief", tmp_path / "out", processes=processes)
    assert seen == {"name": "toy", "kind": "beside"} and sys.path == before
    assert not {"beside", "of_mine"} & set(sys.modules)


def test_a_recipe_with_the_name_of_another_module_is_refused(tmp_path):
    (tmp_path / "torch.py").write_text("1 / 0")
    with pytest.raises(LumosXError, match="torch.py.*rename"):
        train(f"{tmp_path}/torch.py:make", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--device", "tpu"], "'tpu'"), (["--device", "cuda"], "no GPU"), (["--processes", 0], "256"),
     (["--processes", 10**9], "256")],
)  # fmt: skip
def test_wrong_options_are_wrong_usage(run, recipe, tmp_path, words, said, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = run("train", f"{recipe}:brief", "-o", tmp_path / "out", *words, code=2)
    assert said in done.stderr and not (tmp_path / "out").exists()

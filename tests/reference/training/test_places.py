"""Who trains where: one process at a time, where a link leads, and with numbers that are some."""

import os
from dataclasses import replace

import numpy as np
import pytest

from lumosx_rt.bench.common.folder import held_folder
from lumosx_rt.bench.run import benchmark
from lumosx_rt.builder.calibrate import calibrate
from lumosx_rt.reference import files
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.places import held
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.training.loop import train
from lumosx_rt.reference.training.recipe import Recipe, Stage
from lumosx_rt.reference.training.sources import FolderSource
from lumosx_rt.reference.world.scenes import WorldSource
from lumosx_rt.reference.world.train.course import Course

CONFIG = LumosXConfig(dim=24, ffn_dim=32, num_heads=1, num_layers=1, text_dim=8, text_len=16)


def refusal(act, *args, **options) -> str:
    with pytest.raises(LumosXError) as refused:
        act(*args, **options)
    return str(refused.value)


def recipe(**changes) -> Recipe:
    stage = Stage(name="one", steps=3, data=WorldSource([(0, 1)], frames=1, name="one"))
    stage = replace(stage, **{k: changes.pop(k) for k in list(changes) if hasattr(stage, k)})
    return Recipe(model=CONFIG, size=VideoSize(1, 32, 48), stages=(stage,), **changes)


MAKERS = {
    "training": lambda out, bundle: train(recipe(), out),
    "course": lambda out, bundle: Course().run(out),
    "benchmark": lambda out, bundle: benchmark(bundle, out, suite="vae-ceiling", scenes=1),
    "calibration": lambda out, bundle: calibrate(bundle, out.with_suffix(".json"), count=1),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_what_another_makes_is_refused_and_told(tmp_path, micro_bundle, maker):
    out = tmp_path / "out"
    place = out.with_suffix(".json") if maker == "calibration" else out
    if maker == "calibration":
        pytest.importorskip("modelopt")
    with held(place, "other work"):
        before = sorted(os.listdir(tmp_path))
        assert f"(pid {os.getpid()})" in refusal(MAKERS[maker], out, micro_bundle)
        assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("maker", ["training", "benchmark", "calibration"])
def test_a_place_is_tried_first(tmp_path, micro_bundle, maker, monkeypatch):
    if maker == "calibration":
        pytest.importorskip("modelopt")

    def readonly(descriptor):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files.os, "fsync", readonly)
    assert "Read-only" in refusal(MAKERS[maker], tmp_path / "out", micro_bundle)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_written_into_may_be_mounted(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(files.os, "rename", None)  # it is not renamed
    with held_folder(tmp_path / "run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(LumosXError, match="is a file"), held_folder(tmp_path / "file"):
        pass


def test_a_bundle_is_saved_where_a_link_leads(tmp_path):
    (tmp_path / "current").symlink_to("v1")
    save_bundle(tmp_path / "current", transformer=LumosX(CONFIG))
    assert (tmp_path / "v1" / "transformer").is_dir() and (tmp_path / "current").is_symlink()
    (tmp_path / "empty").mkdir()
    save_bundle(tmp_path / "empty", transformer=LumosX(CONFIG))
    for taken in ("current", "empty"):
        assert "already exists" in refusal(save_bundle, tmp_path / taken)
    assert sorted(os.listdir(tmp_path)) == ["current", "empty", "v1"]


WHOLE = ["steps", "streams", "seeds", "warm_up", "save_every", "seed"]


@pytest.mark.parametrize("name", [*WHOLE, "learning_rate", "grad_clip"])
@pytest.mark.parametrize("value", ["3", None, float("nan"), -1, 10**30, True, [1]], ids=str)
def test_numbers_of_a_recipe_are_some(name, value):
    assert f"{name} must be" in refusal(recipe, **{name: value})


def test_numbers_of_any_kind_make_the_same_recipe():
    assert recipe(steps=np.int64(3), seed=np.int32(1)).describe() == recipe(seed=1).describe()
    for name in WHOLE:
        assert f"{name} must be an integer" in refusal(recipe, **{name: 1.5})


@pytest.mark.parametrize("name", ["count", "steps", "bins", "budget"])
@pytest.mark.parametrize("value", ["3", [1], 10**30, True, float("nan")], ids=str)
def test_numbers_of_a_calibration_are_some(tmp_path, name, value):
    assert name in refusal(calibrate, tmp_path, tmp_path / "c.json", **{name: value})
    assert not list(tmp_path.iterdir())


def test_files_of_the_system_are_no_data(tmp_path, monkeypatch):
    """Nor do they change what a run was made of; and a relative path stays where it was."""
    monkeypatch.setattr("lumosx_rt.reference.training.sources.read_clip", lambda path: [[0] * 9])
    (tmp_path / "data").mkdir()
    builtin_scenes()[1].save(tmp_path / "data" / "one")
    monkeypatch.chdir(tmp_path)
    before = FolderSource("data", VideoSize(1, 32, 48)).fingerprint
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / name / "x").write_text("x")
    for name in ("Thumbs.db", ".DS_Store", "one/desktop.ini", "one/.DS_Store"):
        (tmp_path / "data" / name).write_text("x")
    source = FolderSource("data", VideoSize(1, 32, 48))
    monkeypatch.chdir("/")
    assert len(source) == 1 and source.fingerprint == before

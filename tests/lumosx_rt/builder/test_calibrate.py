"""`lumosx-rt calibrate`: scenes in, calibration.json out; stopped runs; refusals."""

import json
import shutil
import sys

import pytest
from PIL import Image

from benchmarks.robustness import toy
from lumosx_rt.artifact.source import random_transformer
from lumosx_rt.builder import calibrate as calibrating
from lumosx_rt.calibration.calibration_file import read_calibration
from lumosx_rt.calibration.samples import LISTS, find_scenes
from lumosx_rt.calibration.scheme import Scheme
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.encoders.random import random_components
from lumosx_rt.reference.errors import LumosXError

CONFIG = LumosXConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=64, text_len=48)
DEFAULTS = {"frames": 5, "height": 32, "width": 48, "steps": 4, "shift": 3.0, "guidance": 3.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bundle, and a folder of prompt folders."""
    root = tmp_path_factory.mktemp("calibrate")
    text_encoder, tokenizer, vae = random_components(0)
    save_bundle(
        root / "bundle",
        transformer=random_transformer(CONFIG, 0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        defaults=DEFAULTS,
    )
    for i in (0, 5, 6):
        toy.Toy().scene(i).save(root / "scenes" / f"toy{i}")
    return root


@pytest.fixture(scope="module")
def done(place):
    """The file of a run that was never stopped."""
    out = place / "whole" / "calibration.json"
    calibrating.calibrate(place / "bundle", out, scenes=str(place / "scenes"), bins=2, budget=35)
    return out


def test_the_command_writes_what_it_says(run, place, done, tmp_path):
    out = tmp_path / "new" / "calibration.json"
    words = ["--scenes", place / "scenes", "--bins", 2, "--budget", 35]
    said = json.loads(run("calibrate", place / "bundle", *words, "-o", out, "--json").stdout)
    found = read_calibration(out)
    assert out.read_bytes() == done.read_bytes()
    assert said["quantized"] == len(found.quantized) and said["sites"] == 24
    assert [path.name for path in sorted(out.parent.iterdir())] == [
        "calibration.json", "calibration.png"
    ]  # fmt: skip
    assert min(found.measured["chosen"]["sqnr"]) >= found.budget == 35
    assert len(found.scenes["prompts"]) == 3 and found.sampling["steps"] == 4
    assert found.bins == find_bins()
    assert {s["activations"] for s in found.measured["schemes"]} == {"tensor", "row"}
    assert 0 < len(found.quantized) < 24 and said["kept"].keys().isdisjoint(found.quantized)
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 500
    text = calibrating.told(found, out)
    assert "% of the blocks' work" in text and str(out) in text


def find_bins():
    from lumosx_rt.reference.sampling.schedules import Schedule

    times = Schedule.released(4, 3.0).times.tolist()
    return [[times[0], times[1]], [times[2], times[3]]]


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("observing toy5", marks=pytest.mark.slow),
        "sensitivity on toy5",
        pytest.param("measuring", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(stage, place, done, tmp_path):
    out = tmp_path / "calibration.json"
    words = {"scenes": str(place / "scenes"), "bins": 2, "budget": 35}

    def stop(what, done, of):
        if what.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrating.calibrate(place / "bundle", out, progress=stop, **words)
    assert [path.name for path in tmp_path.iterdir()] == [".calibration.json.partial"]
    kept = {
        path: path.stat().st_mtime_ns for path in (tmp_path / ".calibration.json.partial").iterdir()
    }
    assert len(kept) > 1

    def still_there(what, done, of):
        assert all(path.stat().st_mtime_ns == when for path, when in kept.items())

    calibrating.calibrate(place / "bundle", out, progress=still_there, **words)
    assert out.read_bytes() == done.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_ctrl_c_is_said_in_one_line(run, place, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrating, "observe", stopped)
    out = tmp_path / "calibration.json"
    words = ["--scenes", place / "scenes", "--bins", 2, "-o", out]
    assert "goes on from there" in run("calibrate", place / "bundle", *words, code=130).stderr
    assert not out.exists()


def test_another_run_does_not_find_its_notes(place, tmp_path):
    def stop(what, done, of):
        if done:
            raise KeyboardInterrupt

    out = tmp_path / "calibration.json"
    for scheme in (Scheme(), Scheme("tensor")):
        with pytest.raises(KeyboardInterrupt):
            calibrating.calibrate(
                place / "bundle", out, scenes=str(place / "scenes"), scheme=scheme, progress=stop
            )
        identity = json.loads((tmp_path / ".calibration.json.partial/identity.json").read_text())
        assert identity["scheme"]["weights"] == scheme.weights


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--scenes", "nowhere"], "accepted are world-v1", 2),
        (["--scenes", "{scenes}", "--count", 9], "1 to 3 scenes", 2),
        (["--scenes", "{scenes}", "--bins", 9], "needs 1 to 4", 2),
        (["--scenes", "{scenes}", "--steps", 0], "steps: got 0", 2),
        (["--scenes", "{scenes}", "--budget", 0], "above 0 dB", 2),
        (["--scenes", "{scenes}", "--precision", "int8"], "bf16", 1),
        (["--scenes", "{scenes}", "--weights", "all"], "tensor, channel", 2),
        (["--scenes", "{root}"], "no prompt folders", 1),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    words, said, code, run, place, tmp_path
):
    empty = tmp_path / "empty"
    empty.mkdir()
    words = [str(w).format(scenes=place / "scenes", root=empty) for w in words]
    out = tmp_path / "calibration.json"
    assert said in run("calibrate", place / "bundle", *words, "-o", out, code=code).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_without_modelopt_it_says_so(run, place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt", None)
    words = ["--scenes", place / "scenes", "-o", tmp_path / "calibration.json"]
    assert "lumosx-rt[build]" in run("calibrate", place / "bundle", *words, code=1).stderr
    assert not list(tmp_path.iterdir())


def test_only_json_is_written(run, place, tmp_path):
    said = run("calibrate", place / "bundle", "-o", tmp_path / "x.png", code=2).stderr
    assert "ends in .json" in said


def test_a_file_that_is_there_is_not_replaced(run, place, done):
    before = done.read_bytes()
    said = run("calibrate", place / "bundle", "-o", done, code=1).stderr
    assert "--force" in said and done.read_bytes() == before


def test_a_list_is_drawn_and_checked(tmp_path):
    named = find_scenes("world-v1", 3)
    copy = tmp_path / "mine.json"
    shutil.copy(LISTS / "world-v1.json", copy)
    assert find_scenes(str(copy), 3).sha256 == named.sha256 and len(named.scenes) == 3
    raw = json.loads(copy.read_text())
    raw["scenes"][0]["caption"] += " It rains."
    raw["scenes"][1]["people"] = 9
    copy.write_text(json.dumps(raw))
    with pytest.raises(LumosXError, match="2 problems"):
        find_scenes(str(copy))
    copy.write_text(json.dumps(json.loads((LISTS / "world-v1.json").read_text()) | {"sha256": ""}))
    with pytest.raises(LumosXError, match="otherwise than its sha256"):
        find_scenes(str(copy))

"""Sizes and sampling that a bundle states for itself."""

import json
from pathlib import Path

import pytest

import lumosx_rt as rt
from lumosx_rt.artifact.defaults import KINDS, RELEASED, SMALL, read_defaults


def test_a_bundle_that_says_nothing_has_the_released_settings(tmp_path):
    assert read_defaults(tmp_path) == RELEASED
    assert (RELEASED["frames"], RELEASED["height"], RELEASED["width"]) == (81, 480, 832)
    assert (RELEASED["steps"], RELEASED["shift"], RELEASED["guidance"]) == (50, 8.0, 6.0)


def test_what_a_bundle_says_counts_and_the_rest_is_as_released(tmp_path):
    (tmp_path / "defaults.json").write_text(json.dumps({"frames": 9, "guidance": 2}))
    assert read_defaults(tmp_path) == RELEASED | {"frames": 9, "guidance": 2}


def test_a_file_of_weights_has_no_defaults_beside_it(tmp_path):
    (tmp_path / "defaults.json").write_text(json.dumps({"frames": 9}))
    assert read_defaults(tmp_path / "model.safetensors") == RELEASED


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"width": "288"}, "width"),
        ({"size": 3}, "size"),
        ([], "object"),
        ({"trained_for": 3}, "trained_for"),
        ({"trained_for": "a\nb"}, "trained_for"),
        ({"trained_for": "x" * 201}, "trained_for"),
    ],
)
def test_nonsense_is_refused_by_name(said, named, tmp_path):
    (tmp_path / "defaults.json").write_text(json.dumps(said))
    with pytest.raises(rt.LumosXError, match=named):
        read_defaults(tmp_path)


def test_random_weights_of_the_tiny_preset_make_small_videos():
    assert set(SMALL) == set(KINDS) and SMALL["width"] == 288


def test_an_engine_takes_them_over(micro_bundle, micro):
    stated = json.loads((micro_bundle / "defaults.json").read_text())
    assert rt.load(micro.folder).manifest.defaults == stated


def test_what_a_checkpoint_was_trained_for_is_passed_on(tmp_path):
    said = json.loads(Path("checkpoints/tiny/defaults.json").read_text())["trained_for"]
    assert "the drawn world" in said
    (tmp_path / "defaults.json").write_text(json.dumps({"trained_for": said}))
    assert read_defaults(tmp_path) == RELEASED | {"trained_for": said}


def test_generate_and_inspect_say_what_an_engine_knows(run, micro, scenes, copied, tmp_path):
    words = ["--frames", 1, "--height", 16, "--width", 16, "--steps", 1, "--provider", "cpu"]
    folder = copied(micro.folder)
    done = run("generate", folder, scenes / "a", "-o", tmp_path / "without", *words)
    assert "this checkpoint knows" not in done.stderr
    raw = json.loads((folder / "manifest.json").read_text())
    raw["defaults"]["trained_for"] = "drawn people only"
    (folder / "manifest.json").write_text(json.dumps(raw))
    done = run("generate", folder, scenes / "a", "-o", tmp_path / "with", *words)
    assert done.stderr.count("note: this checkpoint knows drawn people only") == 1
    assert "trained for: drawn people only" in run("inspect", folder).stdout

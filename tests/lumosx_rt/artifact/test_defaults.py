"""Sizes and sampling that a bundle states for itself."""

import json

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
    [({"steps": 0}, "steps"), ({"width": "288"}, "width"), ({"size": 3}, "size"), ([], "object")],
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

"""What an engine's last check means for whoever loads it; the quirks that it looks for."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import lumosx_rt as rt
from lumosx_rt.artifact.certificate import NotVerified, certificate_of, standing
from lumosx_rt.artifact.manifest import MANIFEST, PICTURE, REPORTS
from lumosx_rt.artifact.report import read_report
from lumosx_rt.parity.comparison import comparison_picture
from lumosx_rt.parity.quirks import TIME, check_quirks
from lumosx_rt.parity.verify import verify
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.quirks import QUIRKS
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.scenes.builtin import builtin_scenes

SIZE = rt.VideoSize(5, 32, 48)
TILED = rt.VideoSize(5, 80, 144)  # tokens of 5 x 9: a tile ends beside the frame


@pytest.fixture(scope="module")
def checked(micro, tmp_path_factory):
    """The micro engine with a certificate."""
    import shutil

    folder = shutil.copytree(micro.folder, tmp_path_factory.mktemp("checked") / "engine")
    engine = rt.load(folder, provider="cpu", unverified=True)
    verify(engine, builtin_scenes(), size=TILED, steps=2)
    return folder


def report(folder, **changes):
    path = folder / REPORTS[0]
    content = json.loads(path.read_text())
    content["verify"] |= changes
    path.write_text(json.dumps(content))


def test_an_engine_without_one_is_loaded_with_a_warning(micro, copied):
    folder = copied(micro.folder)
    assert standing(folder) == "none"
    with pytest.warns(NotVerified, match="lumosx-rt verify"):
        rt.load(folder, provider="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rt.load(folder, provider="cpu", unverified=True)


def test_one_that_passed_is_loaded_without_a_word(checked):
    assert standing(checked) == "passed"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rt.load(checked, provider="cpu")


def test_one_that_failed_is_refused_unless_told_otherwise(
    checked, copied, run, scenes, micro_bundle
):
    folder = copied(checked)
    report(folder, passed=False)
    assert standing(folder) == "failed"
    with pytest.raises(LumosXError, match="--unverified"):
        rt.load(folder, provider="cpu")
    rt.load(folder, provider="cpu", unverified=True)
    words = ("generate", folder, scenes / "a", "-o", scenes / "out", "--components", micro_bundle)
    small = ("--frames", "5", "--height", "32", "--width", "48", "--steps", "1")
    assert "its last check failed" in " ".join(run(*words, *small, code=1).stderr.split())
    run(*words, *small, "--unverified")
    assert list((scenes / "out").glob("*.mp4"))


@pytest.mark.parametrize("passed", [1, "yes", None])
def test_only_true_is_passed(checked, copied, passed):
    folder = copied(checked)
    report(folder, passed=passed)
    assert standing(folder) == "failed"


def test_it_is_of_one_content(checked, copied):
    folder = copied(checked)
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text() + " ")
    assert certificate_of(folder) is None and standing(folder) == "none"


def test_what_it_says(checked):
    section = certificate_of(checked)
    assert section == read_report(checked)["verify"]
    for scene in section["scenes"]:
        assert len(scene["step_relative_errors"]) == 2 and scene["ssim"] > 0.999
    told = {found["quirk"]: found for found in section["quirks"]}
    assert set(told) == {*(quirk.name for quirk in QUIRKS), TIME}
    assert all(found["told_apart"] is True for found in told.values()), told
    with Image.open(checked / PICTURE) as picture:
        assert picture.width > 600 and picture.height > 300
    text = (checked / "report.md").read_text("utf-8")
    assert "told apart" in text and "| SSIM |" in text


# -- quirks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def request_of(micro_engine):
    def made(scene: int, size=TILED):
        return micro_engine.prepare(builtin_scenes()[scene], size=size, steps=2)

    return made


def test_a_scene_that_cannot_show_a_quirk_says_so(micro_engine, micro_bundle, request_of):
    backend = EagerBackend(load_transformer(micro_bundle))
    found = check_quirks(backend, backend, request_of(0), micro_engine.config.head_dim, 1e-5)
    told = {one["quirk"]: one["told_apart"] for one in found}
    assert told[TIME] is True and told["references see their group alone"] is None
    assert told["pictures are bound to their words"] is False  # there are none


def test_an_engine_that_lost_a_quirk_answers_alike(micro_engine, micro_bundle, request_of):
    """The measure can fail: an engine that ignores words does not tell bound from unbound."""
    reference = EagerBackend(load_transformer(micro_bundle))

    class Deaf:
        def bind(self, inputs):
            silent = torch.zeros_like(inputs.tensors["template"])
            return reference.bind(inputs.changed(template=silent))

        def describe(self):
            return {}

    found = check_quirks(Deaf(), reference, request_of(2), micro_engine.config.head_dim, 1e-5)
    told = {one["quirk"]: one for one in found}
    for name in ("pictures are bound to their words", "the null branch keeps the words' masks"):
        assert told[name]["effect"] == 0 and told[name]["told_apart"] is False
    assert found[0]["error"] > 1e-5 and told[TIME]["told_apart"] is True


# -- the picture ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, 1, 60])
def test_the_picture_of_a_comparison(wrong):
    right = np.full((9, 32, 48, 3), 100, np.uint8)
    actual = right.copy()
    actual[4:, 8:16] += np.uint8(wrong)
    result = {
        "scene": "a",
        "layout": "1x1x1+0+-",
        "passed": False,
        "final_relative_error": 1e-3,
        "gate": 1e-4,
        "step_relative_errors": [1e-6, 1e-3],
    }
    picture = np.asarray(comparison_picture(result, actual, right))
    grey = (picture == 128).all(-1).sum()
    shown = 4 * 3 * 3 * 32 * 48  # four frames, three times as large
    assert grey >= (shown if wrong == 0 else 0.6 * shown)
    assert (grey < shown) == (wrong != 0)

"""calibration.json: what is written is read back, and nothing that is wrong is."""

import json

import pytest

from lumosx_rt.calibration.calibration_file import LIMIT_BYTES, read_calibration
from lumosx_rt.kernels.qdq import scale_of
from lumosx_rt.reference.errors import LumosXError
from tests.calibration import toys


@pytest.fixture
def file(tmp_path):
    toys.calibration().write(tmp_path / "calibration.json")
    return tmp_path / "calibration.json"


@pytest.fixture
def changed(file):
    """`changed(change)`: the file after `change` of its content."""

    def edit(change):
        raw = json.loads(file.read_text())
        change(raw)
        file.write_text(json.dumps(raw))
        return file

    return edit


def refusal(file) -> str:
    with pytest.raises(LumosXError) as caught:
        read_calibration(file)
    return str(caught.value)


def test_what_is_written_is_read_back(file):
    found = read_calibration(file)
    assert found == toys.calibration()
    found.check(toys.model(), "0" * 64)
    assert found.scales["blocks.0.ffn.0"].keys() == {"x"}
    assert len(found.quantized) == len(found.sites) == 24


def test_one_scale_serves_all_operands_of_a_role():
    found = toys.calibration().sites["blocks.0.self"]
    seen = [v for s in ("video", "condition") for v in found.amax[f"{s}.k_centred"]]
    assert found.scales["k"] == scale_of(max(seen))


CHANGES = {
    "newer": (lambda raw: raw.update(format=2), "format 2 is newer than 1"),
    "no format": (lambda raw: raw.pop("format"), "no positive integer `format`"),
    "missing": (lambda raw: raw.pop("scheme"), "`scheme` is missing"),
    "unknown": (lambda raw: raw.update(colour="red"), "`colour` is not known"),
    "kind": (lambda raw: raw.update(sites=[]), "`sites` must be dict, got list"),
    "model": (lambda raw: raw["model"].update(dim=33), "`model`: config: dim 33"),
    "scheme": (lambda raw: raw["scheme"].update(weights="all"), "accepted are tensor, channel"),
    "hash": (lambda raw: raw["checkpoint"].update(sha256="x"), "`checkpoint` needs a sha256"),
    "precision": (lambda raw: raw.update(precision="fp8"), "accepted are fp32, bf16"),
    "bins": (lambda raw: raw.update(bins=[[1000, 900], 3]), "`bins` must hold"),
    "unknown site": (
        lambda raw: raw["sites"].update({"blocks.9.self": raw["sites"]["blocks.0.self"]}),
        "'blocks.9.self' is no site of this model",
    ),
    "lost site": (lambda raw: raw["sites"].pop("blocks.1.self"), "blocks.1.self is missing"),
    "site's kind": (
        lambda raw: raw["sites"]["blocks.0.self"].update(scales=3),
        "blocks.0.self: `scales` must be dict, got int",
    ),
    "operands": (
        lambda raw: raw["sites"]["blocks.0.ffn.0"]["amax"].pop("video"),
        "`amax` must have video, condition, got condition",
    ),
    "not finite": (
        lambda raw: raw["sites"]["blocks.0.self"]["scales"].update(q=float("inf")),
        "`scales` of q must be a finite number above 0, got inf",
    ),
    "zero": (
        lambda raw: raw["sites"]["blocks.0.self"]["scales"].update(q=0.0),
        "must be a finite number above 0",
    ),
    "amax": (
        lambda raw: raw["sites"]["blocks.0.ffn.0"]["amax"].update(video=[1.0, -1.0]),
        "`amax` of video must be 2 finite numbers",
    ),
    "flipped scale": (
        lambda raw: raw["sites"]["blocks.1.ffn.2"]["scales"].update(x=3.5),
        "blocks.1.ffn.2: `scales` of x is 3.5, which is not its amax / 448",
    ),
    "weights": (
        lambda raw: raw["sites"]["blocks.0.self"].update(weight_amax=[1.0, 2.0]),
        "`weight_amax` must be",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_is_named(name, changed):
    change, said = CHANGES[name]
    assert said in refusal(changed(change))


def test_all_problems_come_in_one_error(changed):
    def change(raw):
        raw["sites"]["blocks.0.ffn.0"]["scales"]["x"] = 1.0
        raw["sites"].pop("blocks.1.cross")
        raw["precision"] = "int4"

    said = refusal(changed(change))
    assert "3 problems" in said and said.endswith("calibrate again")


def test_sites_that_were_swapped_whole_do_not_fit_the_weights(changed):
    def change(raw):
        sites = raw["sites"]
        a, b = "blocks.0.ffn.0", "blocks.1.ffn.0"
        sites[a], sites[b] = sites[b], sites[a]

    found = read_calibration(changed(change))
    toys.calibration().check(toys.model())
    with pytest.raises(LumosXError, match="2 problems"):
        found.check(toys.model())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0}', "[" * 99999, "\x80"])
def test_what_is_no_calibration_is_refused(text, tmp_path):
    file = tmp_path / "other.json"
    file.write_text(text, encoding="latin-1")
    assert str(file) in refusal(file)


def test_a_huge_file_is_not_read(tmp_path):
    file = tmp_path / "huge.json"
    with file.open("wb") as stream:
        stream.truncate(LIMIT_BYTES + 1)
    assert "larger than any calibration" in refusal(file)
    assert "not readable" in refusal(tmp_path / "absent.json")

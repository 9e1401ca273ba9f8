"""Refusals by kind: each has one code, and real refusals are of the kind that they should be."""

from pathlib import Path

import pytest

import lumosx_rt as rt
from lumosx_rt.reference import errors
from lumosx_rt.reference.errors import MOST_LISTED, listing

CODES = {
    rt.LumosXError: "refused",
    rt.BadInput: "bad_input",
    rt.Unsupported: "unsupported",
    rt.TooLittleMemory: "memory",
    rt.NotFinite: "not_finite",
    rt.Flat: "flat",
}
NOWHERE = Path("/nowhere")


def test_codes_are_stable_and_documented():
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text("utf-8")
    for kind, code in CODES.items():
        assert kind.code == code and issubclass(kind, rt.LumosXError)
        assert f"| `rt.{kind.__name__}` | `{code}` |" in page
    assert {kind for kind in vars(errors).values() if isinstance(kind, type)} == set(CODES)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: rt.Scene.load(NOWHERE), rt.BadInput),
        (lambda: rt.VideoSize(4, 8, 8), rt.BadInput),
        (lambda: rt.load(NOWHERE), rt.BadInput),
        (lambda: rt.build(NOWHERE, "engine"), rt.BadInput),
        (lambda: rt.build(NOWHERE, "engine", backend="abacus"), rt.Unsupported),
    ],
)
def test_refusals_are_of_their_kind(call, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as found:
        call()
    assert type(found.value) is kind


def test_an_engine_refuses_by_kind(micro_engine, micro):
    scene = rt.Scene("x", "a lake")
    with pytest.raises(rt.Unsupported, match="the engine was built for"):
        micro_engine.check_layout(rt.SceneLayout.from_key("1x1x1+0+-"), seeds=10**6)
    small = rt.load(micro.folder, provider="cpu", max_memory="8GiB")
    with pytest.raises(rt.TooLittleMemory):
        small.check(scene, size=rt.VideoSize(401, 1024, 1024))


def test_many_problems_are_ten_and_a_count():
    assert listing("x", ["one"]) == "x: one"
    lines = listing("x", [f"problem {i}" for i in range(MOST_LISTED + 292)]).splitlines()
    assert lines[0] == "x: 302 problems" and len(lines) == 12
    assert lines[10] == "  - problem 9" and lines[11] == "  and 292 more"

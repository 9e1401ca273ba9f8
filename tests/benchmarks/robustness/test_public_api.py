"""Every public name with arguments of every wrong kind; and that a raw error would be seen."""

import pytest

from benchmarks.robustness.public_api import HOSTILE, SOUND, answer, calls, engine_calls


@pytest.mark.parametrize("name", SOUND)
def test_wrong_kinds_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = 0
    for _, call, given in calls(name):
        end, why = answer(call, given)
        assert why is None, (name, given, why)
        made += end != "answered"
    assert made >= len(HOSTILE) / 3


def test_an_engine_refuses_wrong_kinds(micro_engine):
    for name, call, given in engine_calls(micro_engine):
        _, why = answer(call, given)
        assert why is None, (name, given, why)


def test_a_raw_error_is_wrong():
    assert answer(lambda x: x.shape, {"x": None}) == (
        "wrong", "AttributeError: 'NoneType' object has no attribute 'shape'"
    )  # fmt: skip
    assert answer(lambda x: x, {"x": None}) == ("answered", None)

"""No command line shows a traceback, blames a bug or ends with a code of its own making."""

import json

import pytest

from benchmarks.robustness import command_lines

QUICK, ALL = 150, 2000


@pytest.fixture
def places(micro, micro_bundle, tmp_path):
    return command_lines.Places(tmp_path, micro.folder, micro_bundle)


def test_hostile_command_lines_end_with_a_reason(places):
    record = command_lines.run(places, QUICK)
    assert not record["wrong"], json.dumps(record["wrong"], indent=1)
    assert set(record["exit_codes"]) == {"0", "1", "2"}
    assert record["reached_the_work"] > QUICK / 10  # the others are refused before


@pytest.mark.slow
def test_two_thousand_hostile_command_lines(places, micro, micro_bundle, tmp_path):
    out = tmp_path / "record.json"
    where = ["--engine", str(micro.folder), "--checkpoint", str(micro_bundle)]
    words = ["--count", str(ALL), "--first", str(QUICK), *where, "-o", str(out)]
    assert command_lines.main(words) == 0, out.read_text()
    assert json.loads(out.read_text())["lines"] == ALL


@pytest.mark.parametrize("error", [ValueError("a bug"), IndexError(), KeyError("x")], ids=repr)
def test_what_nobody_foresaw_is_said_to_be_a_bug(places, monkeypatch, error):
    def describe(*given):
        raise error

    monkeypatch.setattr("lumosx_rt.runtime.describe.describe", describe)
    outcome = command_lines.ended(["inspect", "x"])
    assert outcome.code == 1 and "this is a bug" in outcome.wrong
    outcome = command_lines.ended(["--log-level", "debug", "inspect", "x"])
    assert "this is a bug" in outcome.wrong


def test_a_line_that_is_wrong_is_noticed(monkeypatch):
    for double, said in (
        (lambda: print("Traceback"), "Traceback"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: exit(7), "exit code 7"),
    ):
        monkeypatch.setattr(command_lines.program, "main", double)
        assert said in command_lines.ended(["inspect"]).wrong

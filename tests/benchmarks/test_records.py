"""What a measuring script leaves: one form of record, written in one place."""

import json
from pathlib import Path

import pytest

from benchmarks.records import keep, write

ROOT = Path(__file__).parents[2] / "benchmarks"
APART = {"gpu", "records.py", "tables.py", "__main__.py"}  # without this package; not a script


def test_a_record_names_its_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write({"rows": [1], "environment": {"torch": "mine"}}, tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["rows"] == [1] and found["environment"]["torch"] == "mine"
    assert found["environment"]["memory_gib"] > 0 and "processor" in found["environment"]
    assert capsys.readouterr().out == ""
    keep({"rows": [1]}, tmp_path / "b.json")
    assert capsys.readouterr().out == (tmp_path / "b.json").read_text()
    with pytest.raises(ValueError):
        write({"rows": [float("nan")]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == found


def test_records_are_written_in_one_place() -> None:
    """A script that writes a file of its own would leave the machine out."""
    scripts = [p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] not in APART]
    assert len(scripts) > 15
    for script in scripts:
        text = script.read_text("utf-8")
        assert "write_atomically" not in text and "out.write_text" not in text, script.name
        asked = "given.out" in text or "arguments.out" in text
        assert not asked or "from benchmarks.records import" in text, script.name

"""Tables of README.md and docs/ are those of the records, and name a commit that is not today's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.sources import has_changed, stamp

ROOT = Path(__file__).parents[2]

FILES = ("code/model.py", "code/ops.py")


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(["git", "-C", root, *who, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path):
    """A repository with code, and a record of figures measured of it."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "code")
    git(tmp_path, "commit", "-qm", "code")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    write(tmp_path, [row("eager", 200.0, ["code/*.py"]), row("fast", 12.34, ["code/ops.py"])])
    return tmp_path


def row(name: str, ms: float, files: list[str]) -> dict:
    ratio = {"ratio": 200 / ms, "low": 1.0, "high": 20.0}
    return {
        "name": name, "precision": "bf16", "median_ms": ms, "relative_error": 1.2e-7,
        "files": files,
        "times_as_fast_as": {tables.BASELINE: ratio} if name != "eager" else {},
        "shares": {"linear": 0.5, "attention": 0.3, "rounding": 0.0, "moves": 0.1, "rest": 0.1},
    }  # fmt: skip


def write(root: Path, rows: list[dict]) -> None:
    stamped = [r | {"stamp": stamp(r["files"], root)} for r in rows]
    size = {
        "config": {"num_layers": 2, "dim": 8, "text_len": 4}, "layout": "1x2x3+0+-", "tokens": 6,
        "seeds": 1, "rounds": 3, "load_average": [0.5, 2.0], "rows": stamped, "times": "wall",
        "machine": {"processor": "abacus", "threads": 1},
    }  # fmt: skip
    file = root / "benchmarks" / "results" / "side_by_side.json"
    file.write_text(json.dumps({"sizes": {"tiny": size}}))


TEXT = "before\n<!-- results: side-by-side -->\nold figures\n<!-- end -->\nafter\n"


def test_every_page_agrees_with_the_records() -> None:
    written: list[str] = []
    for page in tables.pages(ROOT):
        text = page.read_text("utf-8")
        written += [match[2] for match in tables.REGION.finditer(text)]
        assert tables.rewritten(text) == text, f"{page.name}: python -m benchmarks.tables"
    assert sorted(written) == sorted(tables.TABLES), "every table stands on one page"


def test_no_table_of_the_benchmarks_page_is_written_by_hand() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    left = tables.REGION.sub("", text)
    assert left != text
    assert not [line for line in left.splitlines() if line.startswith("|")]


def test_a_region_is_replaced_and_nothing_else(root) -> None:
    new = tables.rewritten(TEXT, root)
    assert new.startswith("before\n<!-- results: side-by-side -->\n- tiny: 2 blocks of 8")
    assert new.endswith("<!-- end -->\nafter\n") and "old figures" not in new
    shares = "linear 50, attention 30, moves 10, rest 10"
    assert f"| fast | 12.3; 16.21 (1.00-20.00) |  |  | 1.2e-07 | {shares} |" in new
    assert "abacus, threads: 1, load average 0.5 to 2.0" in new
    assert tables.rewritten(new, root) == new


def test_a_figure_that_was_changed_by_hand_is_noticed(root) -> None:
    new = tables.rewritten(TEXT, root)
    spoiled = new.replace("16.21", "61.21")
    assert spoiled != new and tables.rewritten(spoiled, root) == new


def test_only_rows_whose_code_has_changed_name_their_commit(root) -> None:
    measured = tables.rewritten(TEXT, root)
    assert "as of" not in measured
    (root / "code" / "model.py").write_text("# faster\n")
    new = tables.rewritten(measured, root)
    head = git(root, "rev-parse", "--short=7", "HEAD")
    assert new != measured and f"| eager (as of {head}) |" in new and "| fast |" in new
    (root / "code" / "ops.py").unlink()
    assert new.count("as of") < tables.rewritten(new, root).count("as of")


def test_a_failed_row_has_a_reason_and_no_figure(root) -> None:
    failed = {"name": "broken", "failed": "no kernel", "files": ["code/ops.py"]}
    write(root, [failed])
    assert "| broken | failed: no kernel |" in tables.rewritten(TEXT, root)


def test_shortcuts_are_told_with_what_they_change(root) -> None:
    rate = {"value": 0.9, "low": 0.8, "high": 1.0}
    exact = {
        "name": "exact", "times_as_fast": {"ratio": 1.0, "low": 1.0, "high": 1.0},
        "relative_error": 0.0, "rates": {"binding": rate},
    }  # fmt: skip
    short = exact | {
        "name": "short", "times_as_fast": {"ratio": 2.5, "low": 2.25, "high": 2.75},
        "whole_steps": 0.25, "relative_error": 0.0312,
        "minus exact": {"binding": {"value": -0.02, "low": -0.03, "high": 0.01}},
    }  # fmt: skip
    record = {
        "scenes": 7, "list": "some", "steps": 3, "times": "processor", "rows": [exact, short],
        "machine": {"processor": "abacus", "threads": 1}, "stamp": stamp(FILES, root),
    }  # fmt: skip
    told = tables.lossy(record, root)
    assert told.startswith("7 scenes of some, 3 steps; abacus, threads: 1, processor time\n")
    assert "| exact | 1.00 (1.00-1.00) | 100 % | 0 | 0.900 |  |" in told
    row = "| short | 2.50 (2.25-2.75) | 25 % | 3.1e-02 | 0.900 | -0.020 (-0.030 to +0.010) |"
    assert row in told
    (root / "code" / "ops.py").write_text("# others\n")
    assert "processor time (as of " in tables.lossy(record, root)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (TEXT.replace("side-by-side", "sidebyside"), "not known"),
        (TEXT.replace("<!-- end -->", ""), "1 regions of results are opened, 0 are whole"),
    ],
)
def test_regions_that_mean_nothing_are_refused(root, text, match) -> None:
    with pytest.raises(ValueError, match=match):
        tables.rewritten(text, root)


def test_a_stamp_names_the_commit_and_whether_it_holds_the_code(root) -> None:
    head = git(root, "rev-parse", "--short=7", "HEAD")
    clean = stamp(FILES, root)
    assert clean["commit"] == head and not has_changed(clean, root)
    (root / "code" / "ops.py").write_text("# others\n")
    assert has_changed(clean, root) and stamp(FILES, root)["commit"] == f"{head}+"
    assert stamp(["code/model.py"], root)["commit"] == head
    with pytest.raises(ValueError, match="no such file"):
        stamp(["code/none.py"], root)
    shutil.rmtree(root / ".git")
    assert stamp(FILES, root)["commit"] == "unknown"


def test_the_command_rewrites_and_checks(root, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tables, "ROOT", root)
    monkeypatch.setattr(tables.rewritten, "__defaults__", (root,))
    page = root / "docs" / "speed.md"
    page.parent.mkdir()
    for text in (root / "README.md", page):
        text.write_text(TEXT)
    for words, code in ((["--check"], 1), ([], 0), (["--check"], 0)):
        monkeypatch.setattr(sys, "argv", ["tables.py", *words])
        assert tables.main() == code
    for text in (root / "README.md", page):
        assert text.read_text() == tables.rewritten(TEXT, root)
    page.write_text(page.read_text().replace("16.21", "61.21"))
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    assert tables.main() == 1 and "docs/speed.md differs" in capsys.readouterr().err

"""Damaged files, a few of every kind; and that the suite sees what it looks for."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def mutations():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks.robustness import mutations

        yield mutations


def test_damaged_files_of_every_kind_give_one_error_each(mutations):
    record = mutations.run(list(mutations.KINDS), 140, 20_000, lambda line: None)
    assert record["cases"] == 140 and not record["wrong"], record
    for name, found in record["kinds"].items():
        assert found["refused"] + found["harmless"] == 20 and found["refused"] > 5, name


def wrong(mutations, tmp_path, read) -> str | None:
    sound, place = tmp_path / "sound", tmp_path / "place"
    sound.mkdir(), place.mkdir()
    (sound / "file.json").write_text('{"a": [1, 2, 3]}')
    kind = mutations.Kind(lambda folder: None, "file.json", read, json=True)
    return mutations.run_case(kind, sound, place, "seed")


def test_a_reader_that_crashes_is_seen(mutations, tmp_path):
    def crash(folder):
        raise ValueError("as it comes")

    assert "ValueError: as it comes" in wrong(mutations, tmp_path, crash)


def test_a_reader_that_hangs_is_seen(mutations, tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "SECONDS", 1)

    def hang(folder):
        while True:
            pass

    assert "took more than 1 s" in wrong(mutations, tmp_path, hang)


def test_a_reader_that_writes_elsewhere_is_seen(mutations, tmp_path):
    def escape(folder):
        (folder.parent / "canary").touch()

    assert "outside its folder" in wrong(mutations, tmp_path, escape)


def test_an_error_without_words_is_seen(mutations, tmp_path):
    from lumosx_rt.reference.errors import LumosXError

    def silent(folder):
        raise LumosXError(" ")

    assert "without words" in wrong(mutations, tmp_path, silent)


def test_memory_that_grows_is_seen(mutations, monkeypatch):
    grown = iter([1 << 20] * 2 + [2 << 30] * 9)
    monkeypatch.setattr(mutations, "peak_bytes", lambda: next(grown))
    record = mutations.run(["manifest"], 2, 0, lambda line: None)
    assert list(record["kinds"]["manifest"]["wrong"].values()) == ["memory grew"]


def test_a_case_is_the_same_every_time(mutations):
    import random

    for i in range(20):
        one, other = (mutations.damaged(b"0123456789" * 9, random.Random(i)) for _ in range(2))
        assert one == other

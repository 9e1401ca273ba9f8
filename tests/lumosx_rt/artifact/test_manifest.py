"""The manifest: what it promises, and every way in which it can be wrong."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from lumosx_rt.artifact.manifest import (
    FileRecord,
    Manifest,
    check_files,
    read_manifest,
    write_atomically,
)
from tests.helpers.engine_folder import DATA, GRAPH, engine, entries, refusal

# -- what it says -------------------------------------------------------------------------------


def test_a_sound_engine_is_read_and_checked(tmp_path):
    manifest = read_manifest(engine(tmp_path))
    check_files(tmp_path, manifest)
    raw = entries()
    assert manifest.files[DATA] == FileRecord(raw["files"][DATA]["sha256"], 256 * 40)
    assert asdict(manifest) == raw | {"mechanism": "lumosx"}  # which is not written


def test_what_is_written_is_what_was_said(tmp_path):
    raw = entries()
    records = {name: FileRecord(**record) for name, record in raw["files"].items()}
    written = Manifest(**raw | {"files": records, "versions": {"größe": "1"}})
    written.write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_bytes()) == raw | {
        "versions": {"größe": "1"}
    }
    assert read_manifest(tmp_path) == written


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    write_atomically(path, "old")

    def full(*names):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as on:
        on.setattr(os, "replace", full)
        with pytest.raises(OSError):
            write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["manifest.json"]
    write_atomically(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["manifest.json"]


def test_reading_and_checking_need_neither_torch_nor_numpy(tmp_path):
    code = (
        "import sys; from pathlib import Path; "
        "from lumosx_rt.artifact.manifest import check_files, read_manifest; "
        "folder = Path(sys.argv[1]); check_files(folder, read_manifest(folder)); "
        "print(sorted({'torch', 'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(engine(tmp_path))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# -- what it may not say ------------------------------------------------------------------------


def test_a_folder_without_a_manifest_is_no_engine(tmp_path):
    assert "not an engine" in refusal(read_manifest, tmp_path)
    assert "not an engine" in refusal(read_manifest, tmp_path / "nothing")
    (tmp_path / "manifest.json").mkdir()
    assert "not an engine" in refusal(read_manifest, tmp_path)


@pytest.mark.parametrize("newer", [2, 1000, 10**30])
def test_a_newer_format_is_refused(tmp_path, newer):
    # whatever else a newer format may say
    text = refusal(read_manifest, engine(tmp_path, {"format": newer, "strange": 1}))
    assert f"format {newer} is newer than 1" in text and "upgrade" in text


@pytest.mark.parametrize("wrong", ["1", 1.0, None, [1], True, 0, -1])
def test_a_format_is_a_positive_integer(tmp_path, wrong):
    assert "format" in refusal(read_manifest, engine(tmp_path, entries() | {"format": wrong}))


def test_a_manifest_without_a_format_is_refused(tmp_path):
    raw = entries()
    del raw["format"]
    assert "format" in refusal(read_manifest, engine(tmp_path, raw))


NO_OBJECTS = {
    "empty": b"",
    "cut off": b"{",
    "no text": b"\xff\xfe\x00",
    "deep list": "[" * 200_000,
    "deep object": '{"a":' * 100_000,
    "digits": '{"format": ' + "9" * 6000 + "}",
    "list": "[]",
    "null": "null",
}


@pytest.mark.parametrize("raw", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_what_is_no_json_object_is_refused(tmp_path, raw):
    assert "manifest.json" in refusal(read_manifest, engine(tmp_path, raw))


def test_missing_unknown_and_ill_typed_entries_are_named_together(tmp_path):
    raw = entries() | {"mood": 1, "pickle": "x", "backend": 7, "files": [], "layouts": None}
    del raw["precision"], raw["model"]
    text = refusal(read_manifest, engine(tmp_path, raw))
    for name in ("precision", "model", "mood", "pickle", "backend", "files", "layouts"):
        assert f"`{name}`" in text
    assert "`versions`" not in text and "7 problems" in text


@pytest.mark.parametrize("name", entries())
def test_every_entry_is_needed_and_has_a_type(tmp_path, name):
    raw = entries()
    del raw[name]
    assert f"`{name}`" in refusal(read_manifest, engine(tmp_path, raw))
    for wrong in (None, 1.5, [1]):
        text = refusal(read_manifest, engine(tmp_path, entries() | {name: wrong}))
        assert f"`{name}`" in text


@pytest.mark.parametrize(
    "record",
    [
        None,
        "a" * 64,
        {},
        {"sha256": "a" * 64},
        {"sha256": "A" * 64, "bytes": 1},
        {"sha256": "a" * 63, "bytes": 1},
        {"sha256": "a" * 64 + "\n", "bytes": 1},
        {"sha256": 1, "bytes": 1},
        {"sha256": "a" * 64, "bytes": "1"},
        {"sha256": "a" * 64, "bytes": 1.0},
        {"sha256": "a" * 64, "bytes": True},
        {"sha256": "a" * 64, "bytes": 1, "mode": 7},
    ],
)
def test_file_records_are_a_hash_and_a_size(tmp_path, record):
    raw = entries()
    raw["files"][DATA] = record
    raw["files"]["other"] = {}
    text = refusal(read_manifest, engine(tmp_path, raw))
    assert f"'{DATA}'" in text and "'other'" in text and f"'{GRAPH}'" not in text


@pytest.mark.parametrize("limits", [[1], [1, 2, 3], [1, 2.0], [True, 2], "12", None, {"a": 1}])
def test_layout_ranges_are_pairs(tmp_path, limits):
    raw = entries()
    raw["layouts"]["frames"] = limits
    assert "'frames'" in refusal(read_manifest, engine(tmp_path, raw))


@pytest.mark.parametrize("table", ["components", "versions"])
def test_hashes_and_versions_are_text(tmp_path, table):
    raw = entries()
    raw[table] = {"good": "x", "bad": 1, "worse": None}
    text = refusal(read_manifest, engine(tmp_path, raw))
    assert "'bad'" in text and "'worse'" in text and "'good'" not in text


@pytest.mark.parametrize(
    "table, entry, wrong",
    [
        ("model", "dim", "48"),
        ("model", "dim", True),
        ("model", "num_heads", 0),
        ("model", "text_len", -1),
        ("model", "mcam_ratio", "half"),
        ("model", "qk_norm", "yes"),
        ("defaults", "frames", "17"),
        ("defaults", "steps", None),
        ("defaults", "fps", "16"),
        ("defaults", "guidance", [6]),
        ("checkpoint", "sha256", 5),
    ],
)
def test_the_entries_of_tables_have_types(tmp_path, table, entry, wrong):
    raw = entries()
    raw[table][entry] = wrong
    text = refusal(read_manifest, engine(tmp_path, raw))
    assert table in text and entry in text


@pytest.mark.parametrize(
    "table, entry",
    [("defaults", n) for n in entries()["defaults"]]
    + [("layouts", n) for n in ("references", "members")]
    + [("checkpoint", "sha256"), ("checkpoint", "preset"), ("checkpoint", "seed")],
)
def test_what_engines_read_of_tables_is_there(tmp_path, table, entry):
    raw = entries()
    del raw[table][entry]
    text = refusal(read_manifest, engine(tmp_path, raw))
    assert table in text and entry in text


def test_an_unknown_precision_is_refused(tmp_path):
    text = refusal(read_manifest, engine(tmp_path, entries() | {"precision": "int3"}))
    assert "precision" in text and "int3" in text


# -- names of files -----------------------------------------------------------------------------


# -- the files themselves -----------------------------------------------------------------------

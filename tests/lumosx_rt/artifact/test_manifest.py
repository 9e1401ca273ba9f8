"""The manifest: what it promises, and every way in which it can be wrong or hostile."""

import hashlib
import json
import os
import posixpath
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lumosx_rt.artifact.manifest import (
    FileRecord,
    Manifest,
    check_files,
    path_problems,
    read_manifest,
    record_files,
    write_atomically,
)
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import sha256_of

GRAPH, DATA, TOKENIZER = (
    "transformer/model.onnx",
    "transformer/model.onnx.data",
    "components/tokenizer/tokenizer.json",
)
CONTENT = {GRAPH: b"graph", DATA: bytes(range(256)) * 40, TOKENIZER: "{ü}".encode()}


def entries() -> dict:
    """A manifest written by hand."""
    return {
        "format": 1,
        "model": asdict(LumosXConfig(dim=48, num_heads=2)),
        "checkpoint": {"source": "random", "preset": "tiny", "seed": 3, "sha256": "a" * 64},
        "backend": "onnxruntime",
        "precision": "fp32",
        "device": {"name": "cpu"},
        "versions": {"torch": "2.13.0"},
        "layouts": {
            "frames": [1, 1024],
            "height": [1, 1024],
            "width": [1, 1024],
            "seeds": [1, 64],
            "references": [0, 16],
            "members": [1, 16],
        },
        "defaults": {
            "frames": 17,
            "height": 128,
            "width": 288,
            "fps": 16,
            "steps": 20,
            "shift": 8.0,
            "guidance": 6.0,
        },
        "components": {"vae": "b" * 64},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in CONTENT.items()
        },
    }


def engine(root: Path, raw: object = None) -> Path:
    """An engine folder, with `raw` as its manifest: entries, text or bytes."""
    for name, content in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    raw = entries() if raw is None else raw
    raw = json.dumps(raw) if isinstance(raw, dict | list) else raw
    (root / "manifest.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return root


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)


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


def test_a_huge_manifest_is_not_read(tmp_path):
    text = json.dumps(entries())
    read_manifest(engine(tmp_path, text + " " * (1 << 20)))
    assert "larger" in refusal(read_manifest, engine(tmp_path, text + " " * (4 << 20)))


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

ESCAPES = [
    "/etc/passwd", "//host/share", "..", "../engine/x", "transformer/../../x", "transformer/..",
    "a\\b", "..\\x", "C:/windows", "c:x", "file:x", "a//b", "./a", "a/", "a/./b", ".", "",
]  # fmt: skip
CODE = ["a.pkl", "a.pickle", "b/c.pt", "a.pth", "a.bin", "x.py", "lib.so", "A.PKL", "b/C.Pt"]
PACKAGE = "transformer/model.pt2"


@pytest.mark.parametrize(
    "name", ESCAPES + CODE + [PACKAGE, "manifest.json", "report.json", "report.md"]
)
def test_a_forbidden_name_is_refused(tmp_path, name):
    raw = entries()
    raw["files"][name] = {"sha256": "a" * 64, "bytes": 1}
    assert repr(name) in refusal(read_manifest, engine(tmp_path, raw))


@pytest.mark.parametrize("name", [*CODE, "model.pt2", "transformer/x.pt2", "transformer/Model.PT2"])
def test_code_is_one_package_of_the_backend_torch(tmp_path, name):
    raw = entries() | {"backend": "torch"}
    raw["files"][PACKAGE] = {"sha256": "a" * 64, "bytes": 1}
    assert PACKAGE in read_manifest(engine(tmp_path, raw)).files
    raw["files"][name] = {"sha256": "a" * 64, "bytes": 1}
    assert repr(name) in refusal(read_manifest, engine(tmp_path, raw))


def test_all_forbidden_names_come_at_once(tmp_path):
    raw = entries()
    raw["files"] |= {name: {"sha256": "a" * 64, "bytes": 1} for name in ("/x", "../y", "z.pkl")}
    text = refusal(read_manifest, engine(tmp_path, raw))
    assert all(name in text for name in ("'/x'", "'../y'", "'z.pkl'", "3 problems"))


@given(st.text("./\\:ab~ \u202e", max_size=12))
@example("a/b.onnx")
@example(".")
def test_an_accepted_name_stays_in_the_folder(name):
    inside = posixpath.normpath(posixpath.join("/engine", name)).startswith("/engine/")
    plain = name == posixpath.normpath(name) and not set(name) & {"\\", ":"}
    assert (path_problems(name) == []) == (inside and plain)


# -- the files themselves -----------------------------------------------------------------------


def damage_of(root: Path) -> str:
    return refusal(check_files, root, read_manifest(root))


def test_every_file_is_recorded_but_the_manifest_and_the_reports(tmp_path):
    engine(tmp_path)
    for name in ("report.json", "report.md"):
        (tmp_path / name).write_text("x")
    expected = {n: FileRecord(**record) for n, record in entries()["files"].items()}
    assert record_files(tmp_path) == expected
    assert sha256_of(tmp_path / GRAPH) == hashlib.sha256(b"graph").hexdigest()


def test_reports_may_come_and_change(tmp_path):
    manifest = read_manifest(engine(tmp_path))
    for text in ("one", "another"):
        (tmp_path / "report.json").write_text(text)
        (tmp_path / "report.md").write_text(text)
        check_files(tmp_path, manifest)
    (tmp_path / "transformer" / "report.md").write_text("only at the top")
    assert "transformer/report.md is not listed" in damage_of(tmp_path)


@pytest.mark.parametrize("name", ["extra.onnx", ".hidden", "components/vae/x", "MANIFEST.json"])
def test_an_unlisted_file_is_refused(tmp_path, name):
    path = engine(tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert f"{name} is not listed" in damage_of(tmp_path)


@pytest.mark.parametrize("hashes", [True, False])
def test_a_missing_file_or_another_size_is_refused(tmp_path, hashes):
    manifest = read_manifest(engine(tmp_path))
    (tmp_path / DATA).write_bytes(CONTENT[DATA][:-1])
    text = refusal(check_files, tmp_path, manifest, hashes=hashes)
    assert DATA in text and "10239 bytes" in text and "10240" in text
    (tmp_path / DATA).unlink()
    assert f"{DATA} is missing" in refusal(check_files, tmp_path, manifest, hashes=hashes)


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_a_changed_byte_is_found_by_its_hash(tmp_path, place):
    manifest = read_manifest(engine(tmp_path))
    content = bytearray(CONTENT[DATA])
    content[place] ^= 1
    (tmp_path / DATA).write_bytes(content)
    text = refusal(check_files, tmp_path, manifest)
    assert text.count("differs") == 1 and DATA in text and "--force" in text
    check_files(tmp_path, manifest, hashes=False)


def test_links_are_refused_even_to_the_right_content(tmp_path):
    outside = tmp_path / "outside"
    for kind in ("file", "folder", "dangling", "inside"):
        root = engine(tmp_path / kind)
        if kind == "folder":
            (root / "transformer").rename(outside)
            (root / "transformer").symlink_to(outside)
        else:
            target = {
                "file": outside / "model.onnx.data",
                "dangling": tmp_path / "nowhere",
                "inside": root / "copy",
            }[kind]
            target.parent.mkdir(exist_ok=True)
            (root / DATA).rename(target)
            (root / DATA).symlink_to(target)
            if kind == "dangling":
                target.unlink()
        text = damage_of(root)
        assert re.search(r"transformer(/model\.onnx\.data)? is (a link|not listed)", text), kind
        for path in sorted(outside.glob("*")) if outside.exists() else []:
            path.unlink()
        if outside.exists():
            outside.rmdir()


def test_an_engine_may_be_reached_through_a_link(tmp_path):
    engine(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    check_files(tmp_path / "link", read_manifest(tmp_path / "link"))


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    raw = entries()
    raw["files"]["pipe"] = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    os.mkfifo(engine(tmp_path, raw) / "pipe")
    code = (
        "import sys; from pathlib import Path; from lumosx_rt.artifact.manifest import *; "
        "folder = Path(sys.argv[1]); check_files(folder, read_manifest(folder))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert "LumosXError" in done.stderr and "pipe" in done.stderr


def test_everything_wrong_with_the_files_comes_at_once(tmp_path):
    manifest = read_manifest(engine(tmp_path))
    (tmp_path / GRAPH).write_bytes(b"grape")
    (tmp_path / DATA).unlink()
    (tmp_path / TOKENIZER).write_bytes(b"")
    (tmp_path / "extra").write_bytes(b"")
    text = refusal(check_files, tmp_path, manifest)
    for part in (f"{GRAPH} differs", f"{DATA} is missing", f"{TOKENIZER} has 0", "extra is not"):
        assert part in text
    assert "4 problems" in text

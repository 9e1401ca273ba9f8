"""Engines that lie about their files: names that leave the folder, links, pipes, changed bytes."""

import hashlib
import json
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lumosx_rt.artifact.manifest import (
    FileRecord,
    check_files,
    path_problems,
    read_manifest,
    record_files,
)
from lumosx_rt.reference.files import sha256_of
from tests.helpers.engine_folder import CONTENT, DATA, GRAPH, TOKENIZER, engine, entries, refusal


def test_a_huge_manifest_is_not_read(tmp_path):
    text = json.dumps(entries())
    read_manifest(engine(tmp_path, text + " " * (1 << 20)))
    assert "larger" in refusal(read_manifest, engine(tmp_path, text + " " * (4 << 20)))


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

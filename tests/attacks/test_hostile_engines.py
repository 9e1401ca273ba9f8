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


UNLISTED = ["extra.onnx", "components/vae/x", "MANIFEST.json", "transformer/README.md"]
UNLISTED += [".hidden.so", "README.py", ".cache/x.pkl", "__MACOSX/a.pt"]  # code, wherever it hides


@pytest.mark.parametrize("name", UNLISTED)
def test_an_unlisted_file_is_refused(tmp_path, name):
    path = engine(tmp_path) / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"")
    text = damage_of(tmp_path)
    assert f"{name} is not listed" in text and "--force" not in text and "remove" in text


BESIDE = [
    ".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r", "~$engine.docx", "@eaDir/x@SynoEAStream",
    "__MACOSX/transformer/._model.onnx", ".ipynb_checkpoints/report-checkpoint.md",
    ".gitattributes", ".git/HEAD", ".cache/huggingface/x.metadata", "README.md", "README",
    "LICENSE.txt",
    "transformer/.DS_Store", "transformer/._model.onnx", "stages.json",
]  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_systems_and_hubs_put_beside_is_ignored(tmp_path, name):
    manifest = read_manifest(engine(tmp_path))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"x")
    check_files(tmp_path, manifest)
    assert record_files(tmp_path) == manifest.files  # nor is it recorded


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


def linked(tmp_path: Path, kind: str) -> Path:
    """An engine with one file, or one folder, that lies elsewhere."""
    root, blobs = engine(tmp_path / kind), tmp_path / "blobs"
    name = "transformer" if kind == "folder" else DATA
    target = root / ".blob" if kind == "inside" else blobs / kind
    target.parent.mkdir(exist_ok=True)
    (root / name).rename(target)
    (root / name).symlink_to(target)
    if kind == "dangling":
        target.unlink()
    return root


@pytest.mark.parametrize("kind", ["file", "inside"])
def test_a_link_is_accepted_where_its_content_is_compared(tmp_path, kind):
    root = linked(tmp_path, kind)
    manifest = read_manifest(root)
    check_files(root, manifest)
    text = refusal(check_files, root, manifest, hashes=False)
    assert f"{DATA} is a link" in text and "cp -rL" in text and "--force" not in text
    content = bytearray(CONTENT[DATA])
    content[7] ^= 1
    (root / DATA).write_bytes(content)
    assert f"{DATA} differs" in damage_of(root)


@pytest.mark.parametrize("kind", ["folder", "dangling"])
def test_other_links_are_refused(tmp_path, kind):
    text = damage_of(linked(tmp_path, kind))
    assert re.search(r"transformer(/model\.onnx\.data)? is a link", text)
    assert "cp -rL" in text and "--force" not in text


def test_a_pointer_is_named_in_place_of_the_file(tmp_path):
    root = engine(tmp_path)
    (root / DATA).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n")
    text = damage_of(root)
    assert f"{DATA} is a git-lfs pointer" in text and "--force" not in text


def test_an_engine_may_be_reached_through_a_link(tmp_path):
    engine(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    check_files(tmp_path / "link", read_manifest(tmp_path / "link"))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_file_of_an_engine_is_waited_for(tmp_path, kind):
    """Each is made a pipe, or a link to a device without an end; all in one process."""
    names = [*CONTENT, "manifest.json", "report.json", "report.md", "strange"]
    for number, name in enumerate(names):
        path = engine(tmp_path / str(number)) / name
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    code = (
        "import sys; from pathlib import Path; from lumosx_rt.artifact.manifest import *\n"
        "from lumosx_rt.artifact.report import read_report\n"
        "from lumosx_rt.reference.errors import LumosXError\n"
        "for folder in sorted(Path(sys.argv[1]).iterdir()):\n"
        "  read_report(folder)\n  try: check_files(folder, read_manifest(folder))\n"
        "  except LumosXError as error: print('refused')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["refused"] * len(names), done.stderr


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

"""Files: whose they are, where they go, and what only stands in their place."""

import json
import os
import subprocess
import sys

import pytest

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import look_at, open_regular, read_json, sha256_of, stand_in

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9\n"


def refusal(act, *args, **options) -> str:
    with pytest.raises(LumosXError) as refused:
        act(*args, **options)
    return str(refused.value)


# -- not the file itself ------------------------------------------------------------------------

STAND_INS = {
    POINTER: "git lfs pull",
    b"# xet version 0\nfilesize = 9": "pointer",
    b"/annex/objects/SHA256E-s9--aa": "pointer",
    b"<!DOCTYPE html><html>Sign in": "HTML",
    b"\n  <HTML><body>404": "HTML",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>": "XML",
    b"<Error><Code>NoSuchKey</Code></Error>": "XML",
    b'{"error": "Repository not found"}': "JSON",
    b"GGUF\x03\0\0\0": "GGUF",
    b"PK\x03\x04rest": "zip",
    b"\x1f\x8b\x08rest": "gzip",
}


@pytest.mark.parametrize("content", STAND_INS)
def test_what_stands_in_a_files_place_is_named(tmp_path, content):
    file = tmp_path / "model.bin"
    file.write_bytes(content)
    for read in (look_at, lambda path, what: open_regular(path, 1 << 20, what)):
        text = refusal(read, file, "weights")
        assert STAND_INS[content] in text and str(file) in text and "\n" not in text
    if not content.startswith(b"{"):
        assert STAND_INS[content] in refusal(read_json, file)


def test_what_is_meant_is_not_refused():
    assert stand_in(b'{"a": 1}', ("json",)) is None and stand_in(b"PK\x03\x04", ("zip",)) is None
    assert stand_in(b"<?xml version='1.0'?><svg>") is None  # a picture, refused as one
    assert stand_in(b'{\x05\0\0\0\0\0\0{"__metadata__"', ("safetensors",)) is None
    assert "safetensors" in str(stand_in(b'\x40\x05\0\0\0\0\0\0{"a"'))


# -- pipes and devices --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_nothing_waits_for_what_is_no_file(tmp_path, kind):
    path = tmp_path / "x.json"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    code = (
        "import sys; from pathlib import Path; from lumosx_rt.reference.files import *\n"
        "from lumosx_rt.reference.errors import LumosXError\n"
        "for read in (read_json, sha256_of, "
        "lambda p: look_at(p, 'w'), lambda p: read_text(p, 'w')):"
        "\n  try: read(Path(sys.argv[1]))\n  except LumosXError as error: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.split() == ["refused"] * 4, done.stderr


def test_json_has_a_limit_and_may_begin_with_a_mark(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(file) == {"a": 1}
    assert "at most 5" in refusal(read_json, file, 5)


def test_hashes_are_of_the_content(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "empty").startswith("e3b0c442")
    assert "folder" in refusal(look_at, tmp_path, "weights")

"""Which files are meant, what they are called, and what is none."""

import os
import signal
from pathlib import Path

import pytest

from lumosx_rt.artifact.defaults import read_defaults
from lumosx_rt.artifact.source import CheckpointSource
from lumosx_rt.reference.checkpoints.bundle import find_bundle, name_of
from lumosx_rt.reference.encoders.umt5 import load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import load_vae
from lumosx_rt.reference.errors import LumosXError


@pytest.mark.parametrize(
    "name", ["LumosX-1.3B", "LumosX-1.5B", "v1.0", "a.safetensors.old", "x.pt", ".hidden"]
)
def test_a_folder_gives_its_whole_name(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    assert name_of(tmp_path / name) == name_of(f"{tmp_path}/{name}/") == name
    monkeypatch.chdir(tmp_path / name)
    assert name_of(".") == name_of("") == name


@pytest.mark.parametrize(
    "file, name",
    [
        ("lumosx-1.3B.safetensors", "lumosx-1.3B"),
        ("model.safetensors.index.json", "model"),
        ("v1.2.pt", "v1.2"),
        ("v1.2.pth", "v1.2"),
        ("w.bin", "w"),
        ("notes.1.txt", "notes.1.txt"),
    ],
)
def test_a_file_gives_its_name_less_a_suffix_of_weights(tmp_path, file, name):
    (tmp_path / file).write_text("")
    assert name_of(tmp_path / file) == name


def test_what_is_found_stays_found_after_a_change_of_folder(tmp_path, monkeypatch):
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    (tmp_path / "model" / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "model" / "vae.safetensors").write_text("x")
    monkeypatch.chdir(tmp_path)
    found = find_bundle("model")
    with pytest.raises(LumosXError, match=r"^elsewhere/model: no such file"):
        find_bundle("elsewhere/model")  # as it was given
    monkeypatch.chdir("/")
    assert found.root == tmp_path / "model" and find_bundle(found.root) == found
    assert found.sha256.keys() == {"transformer", "tokenizer"}


def test_files_of_the_system_are_no_weights(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("m.safetensors", "._m.safetensors", "~$m.safetensors", ".x.safetensors.partial"):
        (tmp_path / name).write_text("x")
    for name in ("tokenizer.json", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / "tokenizer" / name).write_text("{}")
    found = find_bundle(tmp_path)
    assert [f.name for f in found.require("transformer").files] == ["m.safetensors"]
    assert [f.name for f in found.require("tokenizer").files] == ["tokenizer.json"]


def read_all(root: Path) -> None:
    read_defaults(root)
    source = CheckpointSource(find_bundle(root))
    source.load()
    load_text_encoder(source.bundle)
    load_vae(source.bundle)
    assert source.hashes


@pytest.fixture
def guard():
    """Stops what hangs."""

    def stop(number, frame):
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


UNREAD = ("model_index.json", "tokenizer_config.json")


@pytest.mark.parametrize("kind", ["pipe", "device", "pointer"])
def test_no_file_of_a_bundle_is_waited_for_or_taken_for_another(
    tmp_path, micro_bundle, guard, own_cache, kind
):
    files = [file for file in micro_bundle.rglob("*") if file.is_file()]
    files = [file.relative_to(micro_bundle) for file in files if file.name not in UNREAD]
    assert len(files) >= 7
    for number, name in enumerate(files):
        root = tmp_path / str(number)
        for other in files:
            (root / other).parent.mkdir(parents=True, exist_ok=True)
            if other != name:
                (root / other).symlink_to(micro_bundle / other)
        if kind == "pipe":
            os.mkfifo(root / name)
        elif kind == "device":
            (root / name).symlink_to("/dev/zero")
        else:
            (root / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n")
        with pytest.raises(LumosXError) as refused:
            read_all(root)
        assert "\n" not in str(refused.value)
        assert kind != "pointer" or "git lfs pull" in str(refused.value)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(LumosXError, match="a pipe or a device"):
        find_bundle(tmp_path / "m.safetensors")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(LumosXError, match="only a link"):
        find_bundle(Path(tmp_path / "link"))

"""Where an engine goes: through links, into empty folders, one maker at a time, nothing lost."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import check_files, is_engine, read_manifest
from lumosx_rt.artifact.source import RandomSource
from lumosx_rt.builder.place import check_place, put_in_place
from lumosx_rt.reference import files
from lumosx_rt.reference.errors import LumosXError


def refusal(act, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        act(*args, **options)
    return str(found.value)


def is_sound(engine: Path) -> bool:
    check_files(engine, read_manifest(engine))
    return True


def made(folder: Path, name: str) -> Path:
    """What a build has made, as far as its place is concerned."""
    folder.mkdir()
    (folder / "stages.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "backend": name}))
    return folder


def backend_at(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["backend"])


# -- links and empty folders --------------------------------------------------------------------


def test_a_link_stays_and_leads_to_the_engine(micro_bundle, exporter, tmp_path):
    (tmp_path / "current").symlink_to("deep/v1")  # to nothing yet
    assert rt.build(micro_bundle, tmp_path / "current") == tmp_path / "current"
    for references in (3, 4):
        rt.build(micro_bundle, tmp_path / "current", force=True, max_references=references)
        assert is_sound(tmp_path / "deep" / "v1") and (tmp_path / "current").is_symlink()
        assert read_manifest(tmp_path / "current").layouts["references"] == [0, references]
    assert sorted(os.listdir(tmp_path)) == ["current", "deep"]
    assert os.listdir(tmp_path / "deep") == ["v1"]


def test_an_empty_folder_is_a_free_place(micro_bundle, exporter, tmp_path):
    (tmp_path / "engine").mkdir()
    assert is_sound(rt.build(micro_bundle, tmp_path / "engine"))
    assert os.listdir(tmp_path) == ["engine"]


FOREIGN = {
    "a browser's extension": '{"manifest_version": 3, "name": "x", "version": "1"}',
    "a web page's": '{"name": "x", "icons": []}',
    "no JSON": "format",
    "no backend": '{"format": 1}',
    "a list": "[1]",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_what_only_has_a_manifest_is_never_replaced(tmp_path, content):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(content)
    for force in (False, True):
        assert "no engine" in refusal(check_place, tmp_path / "other", force)
    assert (tmp_path / "other" / "manifest.json").read_text() == content


@pytest.mark.parametrize("format", [1, 2, 1000])
def test_an_engine_of_any_format_may_be_replaced(tmp_path, format):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": format, "backend": "torch"}))
    assert is_engine(tmp_path) and check_place(tmp_path, force=True)


def test_a_place_is_tried_before_weights_are_read(micro_bundle, exporter, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    monkeypatch.setattr("lumosx_rt.artifact.source.load_transformer", None)  # not called
    for given in ("engine", "deep/engine"):
        assert "No space" in refusal(rt.build, micro_bundle, tmp_path / given)
    assert not list(tmp_path.iterdir()) and exporter.started == 0


# -- the last step ------------------------------------------------------------------------------


def test_if_the_last_step_fails_all_is_as_before_and_its_work_is_kept(
    micro_bundle, exporter, tmp_path, monkeypatch
):
    out = rt.build(micro_bundle, tmp_path / "engine")
    replace, exporter.finished = os.replace, 0

    def fails(a, b):
        if Path(a).name == ".engine.partial":
            raise OSError(16, "Device or resource busy")
        replace(a, b)

    with monkeypatch.context() as on:
        on.setattr(files.os, "replace", fails)
        text = refusal(rt.build, micro_bundle, out, max_references=3, force=True)
    assert "busy" in text and "same command" in text
    assert is_sound(out) and read_manifest(out).layouts["references"] == [0, 16]
    rt.build(micro_bundle, out, max_references=3, force=True)
    assert exporter.finished == 1 and read_manifest(out).layouts["references"] == [0, 3]
    assert os.listdir(tmp_path) == ["engine"]


def test_the_last_step_follows_a_place_twice(tmp_path):
    for name in ("one", "two", "three"):
        put_in_place(made(tmp_path / ".engine.partial", name), tmp_path / "engine")
        assert os.listdir(tmp_path / "engine") == ["manifest.json"]
        assert backend_at(tmp_path / "engine") == name and os.listdir(tmp_path) == ["engine"]


def test_an_engine_that_came_meanwhile_is_replaced_only_by_force(
    micro_bundle, micro, exporter, tmp_path
):
    out = tmp_path / "engine"
    exporter.spoil = lambda path: shutil.copytree(micro.folder, out)
    assert "--force" in refusal(rt.build, micro_bundle, out, max_references=3)
    assert read_manifest(out).layouts["references"] == [0, 16]
    rt.build(micro_bundle, out, max_references=3, force=True)
    assert exporter.finished == 1 and read_manifest(out).layouts["references"] == [0, 3]


# -- one maker at a time ------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_of_two_builds_the_second_waits_and_finds_it_up_to_date(
    micro_bundle, exporter, tmp_path, force
):
    out, lines, second = tmp_path / "engine", [], []
    begun = threading.Event()

    def build_too() -> None:
        rt.build(micro_bundle, out, report=told, force=force)

    def told(line: str) -> None:
        lines.append(line)
        if line.startswith("waiting"):
            begun.set()

    def start(path: Path) -> None:
        second.append(threading.Thread(target=build_too))
        second[0].start()
        assert begun.wait(30)

    exporter.spoil = start
    rt.build(micro_bundle, out)
    second[0].join()
    assert f"waiting for another build (pid {os.getpid()})" in lines
    assert "up to date" in lines[-1] and exporter.started == 1 and is_sound(out)
    assert os.listdir(tmp_path) == ["engine"]


# -- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seed", "max_references"])
@pytest.mark.parametrize("value", [-1, 10**23, 1.5, "3", True, [1], float("nan")], ids=str)
def test_numbers_are_bounded_before_any_work(tmp_path, name, value):
    text = refusal(rt.build, None, tmp_path / "engine", preset="tiny", **{name: value})
    assert f"{name}" in text.partition("got")[0] and "got" in text and "\n" not in text
    assert not list(tmp_path.iterdir())


def test_numbers_of_any_kind_are_integers():
    assert RandomSource("tiny", np.int64(3)) == RandomSource("tiny", 3)
    assert type(RandomSource("tiny", np.int64(3)).seed) is int

"""Where output goes: tried before the work, taken at its end, held by one process."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lumosx_rt.reference import places
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.places import held, move_folder, place_of, try_place


def refusal(act, *args, **options) -> str:
    with pytest.raises(LumosXError) as refused:
        act(*args, **options)
    return str(refused.value)


# -- one process at a time ----------------------------------------------------------------------

HOLDER = """
import sys, time; from pathlib import Path; from lumosx_rt.reference.places import held
with held(Path(sys.argv[1]), "build"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/deep/engine until its stdin is closed."""
    command = [sys.executable, "-c", HOLDER, tmp_path / "deep" / "engine"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_what_another_process_holds_is_refused_or_waited_for(tmp_path, holder):
    out = tmp_path / "deep" / "engine"
    with held(tmp_path / "deep" / "other", "build"):
        pass  # is free
    assert f"pid {holder.pid}" in refusal(held(out, "training").__enter__)
    told: list[str] = []

    def waiting(line: str) -> None:
        told.append(line)
        holder.stdin.close()  # it finishes, and removes the file that is waited on

    with held(out, "build", waiting):
        assert told == [f"waiting for another build (pid {holder.pid})"]
        assert f"pid {os.getpid()}" in refusal(held(out, "build").__enter__)
    assert not list((tmp_path / "deep").iterdir())
    with held(tmp_path / "new" / "engine", "build"):
        pass
    assert os.listdir(tmp_path) == ["deep"]  # nor the folder that was made for a lock


def test_a_lock_is_gone_with_its_process(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert list((tmp_path / "deep").iterdir())
    with held(tmp_path / "deep" / "engine", "build"):
        pass
    assert not list((tmp_path / "deep").iterdir())


def test_of_many_only_one_works(tmp_path):
    inside, most = [], []

    def work():
        with held(tmp_path / "x", "build", lambda line: None):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 16 and not list(tmp_path.iterdir())


def test_where_files_cannot_be_locked_nobody_waits(tmp_path, monkeypatch):
    import fcntl

    def unable(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    with held(tmp_path / "x", "build"), held(tmp_path / "x", "build"):
        pass
    (tmp_path / "file").write_text("")
    with held(tmp_path / "file" / "x", "build"):
        pass


# -- where output goes --------------------------------------------------------------------------


def test_a_link_is_followed_also_to_nothing(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "current").symlink_to("v1")
    (tmp_path / "next").symlink_to("deep/v2")
    assert place_of(tmp_path / "current") == tmp_path.resolve() / "v1"
    assert place_of(tmp_path / "next") == tmp_path.resolve() / "deep" / "v2"
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "circle" in refusal(place_of, tmp_path / "a")


@pytest.mark.parametrize("stands", ["nothing", "empty", "full", "deep"])
def test_a_place_is_tried_and_left_as_it_was(tmp_path, stands):
    out = tmp_path / "a" / "b" / "out" if stands == "deep" else tmp_path / "out"
    if stands in ("empty", "full"):
        out.mkdir()
    if stands == "full":
        (out / "dear").write_text("dear")
    before = [(p, p.stat().st_ino) for p in sorted(tmp_path.rglob("*"))]
    try_place(out)
    assert [(p, p.stat().st_ino) for p in sorted(tmp_path.rglob("*"))] == before


@pytest.mark.parametrize("number, said", [(30, "Read-only"), (28, "No space"), (122, "quota")])
def test_a_place_that_cannot_be_written_is_told_before(tmp_path, monkeypatch, number, said):
    def fails(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(places.os, "fsync", fails)
    text = refusal(try_place, tmp_path / "out")
    assert said in text and "another place" in text and not list(tmp_path.iterdir())


@pytest.mark.parametrize("full", [False, True])
def test_a_mounted_folder_is_told_before(tmp_path, monkeypatch, full):
    out = tmp_path / "out"
    out.mkdir()
    if full:
        (out / "file").write_text("")

    def busy(a, b):
        raise OSError(16, os.strerror(16))

    monkeypatch.setattr(places.os, "rename", busy)
    assert "mounted" in refusal(try_place, out)
    assert os.listdir(tmp_path) == ["out"]


def finished(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


@pytest.mark.parametrize("left", ["nothing", "folder", "file", "link", "dangling link"])
def test_a_folder_takes_its_place_whatever_was_left_over(tmp_path, left):
    out, old = finished(tmp_path / "out", "old"), tmp_path / ".out.old"
    if left == "folder":
        finished(old, "older")
    elif left == "file":
        old.write_text("x")
    elif left != "nothing":
        old.symlink_to("dear" if left == "link" else "nowhere")
        finished(tmp_path / "dear", "dear")
    for round in ("one", "two"):
        move_folder(finished(tmp_path / "made", round), out)
        assert (out / "file").read_text() == round
    assert set(os.listdir(tmp_path)) <= {"out", "dear"}
    assert left != "link" or (tmp_path / "dear" / "file").read_text() == "dear"


def test_what_cannot_take_its_place_leaves_what_was_there(tmp_path, monkeypatch):
    out, made = finished(tmp_path / "out", "old"), finished(tmp_path / "made", "new")
    replace = os.replace

    def fails(a, b):
        if Path(a) == made:
            raise OSError(16, "busy")
        replace(a, b)

    monkeypatch.setattr(places.os, "replace", fails)
    with pytest.raises(OSError):
        move_folder(made, out)
    assert (out / "file").read_text() == "old" and (made / "file").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["made", "out"]

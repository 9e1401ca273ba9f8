"""`generate`: every scene that can be made is made, and nothing half-made is left."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lumosx_rt as rt
from lumosx_rt.reference.places import held
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.reference.scenes.clips import read_clip
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.runtime import folder as batch

SMALL = ["--frames", "5", "--height", "32", "--width", "48", "--steps", "2", "--provider", "cpu"]
NONE, ONE, TWO = builtin_scenes()


# -- the command -----------------------------------------------------------------------------------


def test_generate_makes_what_it_can_of_a_folder_of_scenes(
    run, drawn, drawn_engine, scenes, tmp_path
):
    out = tmp_path / "videos"
    done = run("generate", drawn.folder, scenes, "-o", out, *SMALL, "--json", code=1)
    outcomes = json.loads(done.stdout)
    assert [o["scene"] for o in outcomes] == ["one-subject", str(scenes / "b-bad"), "two-subjects"]
    assert [o["error"] is None for o in outcomes] == [True, False, True]
    assert "'blue coat'" in outcomes[1]["error"] and outcomes[1]["files"] == []
    assert "1 of 3 scenes failed" in done.stderr and "'blue coat'" in done.stderr
    assert "random weights" in done.stderr
    names = ["one-subject.mp4", "one-subject.png", "two-subjects.mp4", "two-subjects.png"]
    assert sorted(os.listdir(out)) == names
    assert sorted(f for o in outcomes for f in o["files"]) == [str(out / name) for name in names]
    for scene in (ONE, TWO):
        frames, fps = read_clip(out / f"{scene.name}.mp4")
        assert frames.shape == (5, 32, 48, 3) and fps == 16
        (video,) = drawn_engine.generate(scene, size=rt.VideoSize(5, 32, 48), steps=2)
        # lossy, and colours are stored at half the size: brightness is what to compare
        shown, made = (x.astype(float).mean(-1).ravel() for x in (frames, video.frames))
        assert np.corrcoef(shown, made)[0, 1] > 0.97 and abs(shown.mean() - made.mean()) < 3
        sheet = Image.open(out / f"{scene.name}.png")
        sheet.load()
        assert sheet.format == "PNG" and sheet.width > 480 and sheet.height > 100


def test_generate_prints_the_files_it_made(run, drawn, scenes, tmp_path):
    command = ["generate", drawn.folder, scenes / "a", scenes / "c", "-o", tmp_path / "out", *SMALL]
    done = run(*command, "--seed", "3", "--seed", "4")
    files = [
        str(tmp_path / "out" / f"{scene}-seed{seed}.{suffix}")
        for scene in ("one-subject", "two-subjects")
        for seed in (3, 4)
        for suffix in ("mp4", "png")
    ]
    assert done.stdout.splitlines() == files
    clips = [read_clip(file)[0] for file in files[::2]]
    assert len({clip.tobytes() for clip in clips}) == 4


def test_generate_overwrites_only_by_force(run, drawn, scenes, tmp_path):
    out = tmp_path / "out"
    command = ["generate", drawn.folder, scenes / "a", "-o", out, *SMALL]
    run(*command)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    done = run(*command, "--guidance", "2", code=1)
    assert "one-subject.mp4 exists" in done.stderr and "--force" in done.stderr
    assert done.stdout.strip() == ""
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert after == before
    run(*command, "--guidance", "2", "--force")
    assert sorted(os.listdir(out)) == ["one-subject.mp4", "one-subject.png"]
    assert (out / "one-subject.mp4").read_bytes() != before[out / "one-subject.mp4"][0]
    (out / "one-subject.mp4").unlink()  # half of a pair is in the way too
    assert "one-subject.png exists" in run(*command, code=1).stderr
    assert os.listdir(out) == ["one-subject.png"]


def test_two_scenes_of_one_name_do_not_overwrite_each_other(run, drawn, scenes, tmp_path):
    ONE.save(tmp_path / "twin")
    command = ["generate", drawn.folder, scenes / "a", tmp_path / "twin", *SMALL, "--force"]
    done = run(*command, "-o", tmp_path / "out", "--json", code=1)
    first, second = json.loads(done.stdout)
    assert len(first["files"]) == 2 and "rename" in second["error"]


def test_settings_reach_the_engine(run, drawn, scenes, tmp_path, monkeypatch):
    seen = {}

    def generate_all(engine, paths, out, **settings):
        seen.update(settings, paths=paths, out=out)
        return []

    monkeypatch.setattr(batch, "generate_all", generate_all)
    run("generate", drawn.folder, scenes / "a", scenes / "c", "-o", tmp_path / "x", "--steps", 7,
        "--guidance", 2.5, "--shift", 3, "--seed", 9, "--height", 64, "--negative-prompt", "rain",
        "--force")  # fmt: skip
    assert seen["paths"] == [scenes / "a", scenes / "c"] and seen["out"] == tmp_path / "x"
    assert (seen["steps"], seen["guidance"], seen["shift"]) == (7, 2.5, 3.0)
    assert (seen["seeds"], seen["negative_prompt"], seen["force"]) == ((9,), "rain", True)
    defaults = rt.load(drawn.folder).manifest.defaults
    assert seen["size"] == rt.VideoSize(defaults["frames"], 64, defaults["width"])


def test_the_order_of_files_and_the_face_script_can_be_chosen(run, drawn, scenes, tmp_path):
    command = ["generate", drawn.folder, scenes / "b-bad", *SMALL]
    # without its attributes the scene is sound
    run(*command, "--script", "face", "-o", tmp_path / "faces")
    assert sorted(os.listdir(tmp_path / "faces")) == ["bad.mp4", "bad.png"]
    for option in ("--order", "--script"):
        done = run(*command, option, "random", "-o", tmp_path / "out", code=2)
        assert "'random'" in done.stderr and not (tmp_path / "out").exists()


def test_nothing_half_made_is_left_when_a_picture_cannot_be_written(
    run, drawn, scenes, tmp_path, monkeypatch
):
    right, count = Image.Image.save, iter(range(99))

    def interrupted(self, file, *args, **options):
        if next(count) == 1:
            Path(file).write_bytes(b"half")
            raise KeyboardInterrupt
        return right(self, file, *args, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    out = tmp_path / "out"
    done = run("generate", drawn.folder, scenes / "a", scenes / "c", "-o", out, *SMALL, code=130)
    assert "stopped" in done.stderr
    assert not [name for name in os.listdir(out) if name.startswith(".") or "partial" in name]
    assert {"one-subject.mp4", "one-subject.png"} <= set(os.listdir(out))
    Image.open(out / "one-subject.png").load()


def test_ctrl_c_while_sampling_leaves_nothing(drawn, scenes, tmp_path):
    out = tmp_path / "out"
    words = ["generate", drawn.folder, scenes / "c", "-o", out, *SMALL, "--steps", 1000]
    ours, theirs = pty.openpty()  # a bar is drawn as it grows only on a terminal
    process = subprocess.Popen(
        [sys.executable, "-m", "lumosx_rt", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    )
    os.close(theirs)
    shown, deadline, asked = b"", time.monotonic() + 90, False
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
            if not asked and re.search(rb"[1-9]\d*/1000", shown):
                process.send_signal(signal.SIGINT)
                asked = True
        assert asked, shown[-2000:]
        assert process.wait(30) == 130, shown[-2000:]
        assert process.stdout.read() == b""
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"stopped" in shown and b"Traceback" not in shown
    assert not out.exists() or os.listdir(out) == []


def test_a_video_folder_that_cannot_be_is_refused_before_the_engine_is_loaded(
    run, drawn, scenes, tmp_path, monkeypatch
):
    monkeypatch.setattr("lumosx_rt.runtime.engine.load", lambda *args, **options: 1 / 0)
    (tmp_path / "file").write_text("precious")
    places = [tmp_path / "file", tmp_path / "file" / "out", tmp_path / ("x" * 300), "/proc/x/y"]
    for out in places:
        done = run("generate", drawn.folder, scenes / "a", "-o", out, *SMALL, code=1)
        assert str(out) in done.stderr and "cannot be written" in done.stderr
    assert (tmp_path / "file").read_text() == "precious"
    right = os.fsync

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = run("generate", drawn.folder, scenes / "a", "-o", tmp_path / "out", *SMALL, code=1)
    assert "No space left" in done.stderr
    monkeypatch.setattr(os, "fsync", right)
    assert sorted(os.listdir(tmp_path)) == ["file", "scenes"]


def test_every_failure_of_a_scene_is_its_own(drawn_engine, scenes, tmp_path, monkeypatch):
    shutil.rmtree(scenes / "b-bad")
    right = batch.Scene.load
    for number, error in enumerate(
        (OSError(28, "No space left on device"), PermissionError(13, "Permission denied", "x"),
         TypeError("a bug"), RuntimeError("Reshape"), RecursionError(), rt.LumosXError("no"))
    ):  # fmt: skip

        def load(path, error=error):
            if path.name == "a":
                raise error
            return right(path)

        bad, good = batch.generate_all(
            drawn_engine, batch.find_scenes([scenes]), tmp_path / f"out{number}", force=False,
            load=load, size=rt.VideoSize(1, 16, 16), steps=1, guidance=1.0,
        )  # fmt: skip
        assert bad.scene == str(scenes / "a") and not bad.files and bad.error
        assert str(error) in bad.error or error.strerror in bad.error
        assert len(good.files) == 2 and good.error is None


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (MemoryError(), 1), (OSError(28, "No space left on device"), 1)],
    ids=repr,
)
@pytest.mark.parametrize("as_json", [True, False])
def test_what_was_made_is_told_however_it_ends(
    run, drawn, scenes, tmp_path, monkeypatch, error, code, as_json
):
    right, count = Image.Image.save, iter(range(99))

    def save(self, *args, **options):
        if next(count) == 2:  # the second picture of the second scene
            raise error
        return right(self, *args, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    words = [scenes / "a", scenes / "c", scenes / "a", "-o", tmp_path / "out", *SMALL, "--force"]
    seeds = ["--seed", 1, "--seed", 2, *(["--json"] if as_json else [])]
    done = run("generate", drawn.folder, *words, *seeds, code=code)
    names = ["one-subject-seed1", "one-subject-seed2", "two-subjects-seed1"]
    files = [str(tmp_path / "out" / f"{name}{end}") for name in names for end in (".mp4", ".png")]
    files.pop()
    if as_json:
        outcomes = json.loads(done.stdout)
        assert [file for outcome in outcomes for file in outcome["files"]] == files
        assert [outcome["error"] is None for outcome in outcomes[:2]] == [True, False]
        assert len(outcomes) == (3 if isinstance(error, OSError) else 2)
    else:
        assert done.stdout.splitlines() == files
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]


def test_two_that_make_the_same_take_turns(drawn_engine, scenes, tmp_path):
    out, waited, asked = tmp_path / "out", [], threading.Event()

    def one(told, force=False):
        settings = {"size": rt.VideoSize(1, 16, 16), "steps": 1, "guidance": 1.0}
        return list(
            batch.generate_all(
                drawn_engine, [scenes / "a"], out, force=force, waiting=told, **settings
            )
        )

    def second():
        waited.extend(one(lambda line: (waited.append(line), asked.set())))

    thread = threading.Thread(target=second)
    with held(out / "one-subject", "generate"):
        thread.start()
        assert asked.wait(20)
        (out / "one-subject.mp4").write_bytes(b"the first one's")
    thread.join(20)
    line, outcome = waited
    assert "another generate" in line and "one-subject.mp4 exists" in outcome.error
    assert (out / "one-subject.mp4").read_bytes() == b"the first one's"
    assert os.listdir(out) == ["one-subject.mp4"]


# -- finding scenes -----------------------------------------------------------------------------


def test_scenes_are_found_in_folders_by_name(scenes, tmp_path):
    assert batch.find_scenes([scenes]) == [scenes / n for n in ("a", "b-bad", "c")]
    assert batch.find_scenes([scenes / "c", scenes / "a"]) == [scenes / "c", scenes / "a"]
    (scenes / "notes" / "scene.toml").write_text('caption = "A lake."')
    assert batch.find_scenes([scenes])[-1] == scenes / "notes"
    file = scenes / "notes" / "scene.toml"
    assert batch.find_scenes([file]) == [file] and Scene.load(file).caption == "A lake."
    (tmp_path / "empty").mkdir()
    assert batch.find_scenes([tmp_path / "empty"]) == [tmp_path / "empty"]
    with pytest.raises(rt.LumosXError, match="nowhere"):
        batch.find_scenes([scenes, tmp_path / "nowhere"])


def test_a_folder_that_may_not_be_entered_is_one_scene_of_many(scenes, monkeypatch):
    right = Path.stat

    def stat(self, **options):
        if self.parent.name == "b-bad":
            raise PermissionError(13, "Permission denied", str(self))
        return right(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert batch.find_scenes([scenes]) == [scenes / n for n in ("a", "b-bad", "c")]
    monkeypatch.setattr(Path, "iterdir", lambda self: open("/proc/nothing"))
    assert batch.find_scenes([scenes]) == [scenes]

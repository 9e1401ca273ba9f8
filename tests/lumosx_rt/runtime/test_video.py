"""Videos: the same frames in every form, written by the suffix."""

import base64
import re

import av
import numpy as np
import pytest
import torch
from PIL import Image

import lumosx_rt as rt
from lumosx_rt.reference.scenes.clips import read_clip

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)


@pytest.fixture
def video() -> rt.Video:
    return rt.Video("two", FRAMES.copy(), 8, 3)


def test_forms(video):
    assert np.array_equal(video.numpy(), FRAMES)
    assert np.array_equal([np.asarray(frame) for frame in video.pil()], FRAMES)
    tensor = video.torch()
    assert tensor.dtype == torch.uint8 and tensor.is_contiguous()
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), FRAMES)
    video.numpy()[:] = 0
    tensor[:] = 0
    assert np.array_equal(video.frames, FRAMES) and len(video) == 5


def test_equality(video):
    other = FRAMES.copy()
    other[4, 15, 23, 2] ^= 1
    assert video == rt.Video("two", FRAMES.copy(), 8, 3)
    assert hash(video) == hash(rt.Video("two", FRAMES.copy(), 8, 3))
    for different in (
        rt.Video("two", other, 8, 3), rt.Video("two", FRAMES[:4], 8, 3),
        rt.Video("one", FRAMES, 8, 3), rt.Video("two", FRAMES, 9, 3), rt.Video("two", FRAMES, 8, 4),
        "two", None,
    ):  # fmt: skip
        assert video != different
    assert repr(video) == "Video 'two': 5 frames of 24 x 16 at 8 a second, seed 3"


def test_saved_by_its_suffix(video, tmp_path):
    assert read_clip(video.save(tmp_path / "a.mp4"))[0].shape == FRAMES.shape
    first = video.save(str(tmp_path / "frames" / "a.png"))
    assert first == tmp_path / "frames" / "a-0000.png"
    for i, frame in enumerate(FRAMES):
        assert np.array_equal(np.asarray(Image.open(first.with_name(f"a-{i:04d}.png"))), frame)
    with Image.open(video.save(tmp_path / "a.WEBP")) as webp:
        assert webp.format == "WEBP" and webp.n_frames == 5
        for i, frame in enumerate(FRAMES):
            webp.seek(i)
            assert np.array_equal(np.asarray(webp.convert("RGB")), frame)
    with Image.open(video.save(tmp_path / "a.gif")) as gif:
        assert gif.format == "GIF" and gif.n_frames == 5 and gif.info["duration"] == 120
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - FRAMES[0]).mean() < 40
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["a", "a.avi", "a.mp4.txt", "a.jpg", ".mp4"])
def test_any_other_suffix_is_refused(video, tmp_path, name):
    with pytest.raises(rt.LumosXError, match=r"accepted are \.mp4, \.gif, \.webp, \.png"):
        video.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp", "png"])
def test_a_place_that_cannot_be_written_is_one_error(video, tmp_path, suffix):
    (tmp_path / "file").write_text("x")
    with pytest.raises(rt.LumosXError, match="cannot be written"):
        video.save(tmp_path / "file" / f"a.{suffix}")


def test_a_notebook_plays_it(video, tmp_path):
    shown = rt.Video('<"two">', video.frames, 8, 3)._repr_html_()
    data = re.search(r'src="data:video/mp4;base64,([^"]+)"', shown)
    assert data and "<video " in shown and '<"two">' not in shown
    (tmp_path / "shown.mp4").write_bytes(base64.b64decode(data[1]))
    with av.open(tmp_path / "shown.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 5

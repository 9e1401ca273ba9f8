"""Clips: what is written is read back."""

import os

import av
import numpy as np
import pytest

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.clips import read_clip, write_clip
from tests.helpers.clips import moving


@pytest.mark.parametrize(("height", "width"), [(64, 144), (63, 143), (1, 1), (17, 32)])
def test_written_and_read(tmp_path, height, width):
    frames = moving(7, height, width)
    path = write_clip(tmp_path / "new" / "clip.mp4", frames)
    seen, fps = read_clip(path)
    even = (height + height % 2, width + width % 2)
    assert fps == 16 and seen.dtype == np.uint8 and seen.shape == (7, *even, 3)
    assert np.abs(seen[:, :height, :width].astype(int) - frames).mean() < 3
    # an odd side ends with its last row or column once more
    padded = seen[:, [*range(height), height - 1][: even[0]]][
        :, :, [*range(width), width - 1][: even[1]]
    ]
    assert np.abs(seen.astype(int) - padded).mean() < 2
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


def test_what_players_are_told(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving(5, 32, 48), fps=24)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 24)
        assert (context.colorspace, context.color_range) == (6, 1)  # BT.601, limited
        assert "mp4" in container.format.name
    # the index lies before the pictures, so that a player can start at once
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_the_rate_factor_trades_size_for_truth(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    sizes = [
        write_clip(tmp_path / "x.mp4", frames, rate_factor=factor).stat().st_size
        for factor in (1, 20, 45)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
    ],
)
def test_other_frames_are_refused(tmp_path, frames):
    with pytest.raises(LumosXError, match=r"uint8 \[frames, height, width, 3\], got"):
        write_clip(tmp_path / "x.mp4", frames)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", [{"fps": 0}, {"fps": float("nan")}, {"rate_factor": 60}])
def test_other_settings_are_refused(tmp_path, setting):
    with pytest.raises(LumosXError, match="accepted are 1 to 1000"):
        write_clip(tmp_path / "x.mp4", moving(1, 4, 4), **setting)


def test_a_failed_write_keeps_the_old_clip(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", moving(2, 16, 16))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LumosXError, match=r"clip\.mp4.*No space left"):
        write_clip(path, moving(3, 16, 16))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

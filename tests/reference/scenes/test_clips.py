"""Clips: what is written is read back, and files nobody should trust."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.clips import read_clip, write_clip


def moving(frames: int, height: int, width: int) -> np.ndarray:
    """A smooth picture that drifts, so that x264 keeps it well."""
    time, y, x = np.ogrid[:frames, :height, :width]
    waves = [
        np.sin((x + 3 * time) / 17),
        np.cos((y - 2 * time) / 13),
        np.sin((x + y) / 23 + time / 9),
    ]
    planes = np.stack([np.broadcast_to(wave, (frames, height, width)) for wave in waves], -1)
    return np.uint8(127.5 + 100 * planes)


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


def test_limits(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", moving(6, 16, 32))
    assert len(read_clip(path, max_frames=6)[0]) == 6
    assert len(read_clip(path, max_bytes=6 * 16 * 32 * 3)[0]) == 6
    with pytest.raises(LumosXError, match="more than 5 frames of 32 x 16"):
        read_clip(path, max_frames=5)
    with pytest.raises(LumosXError, match="more than 5 frames of 32 x 16"):
        read_clip(path, max_bytes=6 * 16 * 32 * 3 - 1)


def test_large_frames_are_refused_by_their_header(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mp4", moving(1, 64, 64))
    monkeypatch.setattr("lumosx_rt.reference.scenes.clips.MAX_FRAME_PIXELS", 64 * 64 - 1)
    with pytest.raises(LumosXError, match="64 x 64.*scale it down"):
        read_clip(path)


@pytest.mark.parametrize("share", np.linspace(0.05, 0.97, 12).round(3).tolist())
def test_truncated_clips(tmp_path, share):
    noise = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "clip.mp4", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LumosXError, match=r"clip\.mp4.*whole mp4 and mov"):
        read_clip(path)


def test_things_that_are_no_clips(tmp_path):
    good = write_clip(tmp_path / "good.mp4", moving(2, 16, 16))
    Image.new("RGB", (16, 16)).save(tmp_path / "picture.mp4", "PNG")
    # a playlist would make a demuxer open the files it names
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n"
    (tmp_path / "playlist.mp4").write_text(playlist)
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{good}'\n")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("picture", "playlist", "concat", "empty", "folder", "pipe", "absent"):
        with pytest.raises(LumosXError, match=rf"{name}\.mp4"):
            read_clip(tmp_path / f"{name}.mp4")


def recoded(path: Path, codec: str, kind: str, container_format: str = "mp4") -> Path:
    with av.open(str(path), "w", format=container_format) as container:
        if kind == "audio":
            stream = container.add_stream(codec, rate=44100)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.sample_rate = 44100
            container.mux(stream.encode(sound))
        else:
            stream = container.add_stream(codec, rate=16)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            picture = av.VideoFrame.from_ndarray(moving(1, 16, 16)[0], format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def test_other_streams(tmp_path):
    with pytest.raises(LumosXError, match="has no video"):
        read_clip(recoded(tmp_path / "sound.mp4", "aac", "audio"))
    with pytest.raises(LumosXError, match="coded in mpeg2video; accepted are h264"):
        read_clip(recoded(tmp_path / "old.mp4", "mpeg2video", "video"))
    for other in ("matroska", "avi"):
        with pytest.raises(LumosXError, match="accepted are whole mp4 and mov files"):
            read_clip(recoded(tmp_path / "other.mp4", "mpeg4", "video", other))
    frames, _ = read_clip(recoded(tmp_path / "other.mp4", "mpeg4", "video"))
    assert frames.shape == (1, 16, 16, 3)

"""Clips that nobody should trust: too large, cut off, playlists, other streams and containers."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.clips import read_clip, write_clip
from tests.helpers.clips import moving


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

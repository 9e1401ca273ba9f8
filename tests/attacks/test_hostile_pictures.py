"""Pictures that nobody should trust: bombs, damaged files, things that are no pictures."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes import images
from lumosx_rt.reference.scenes.images import fit_image, load_image

RED = (255, 0, 0)


def saved(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png_claiming(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 9000), (12000, 12000), (50000, 50000), (2**31 - 1, 7)])
def test_bombs_are_refused_by_their_header(tmp_path, size, monkeypatch):
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    (tmp_path / "bomb.png").write_bytes(png_claiming(*size))
    with pytest.raises(LumosXError, match=r"bomb\.png.*64,000,000 pixels.*scale it"):
        load_image(tmp_path / "bomb.png")


def test_large_files_are_not_read(tmp_path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(LumosXError, match=r"large\.png.*67,108,865 bytes.*smaller"):
        load_image(tmp_path / "large.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path / f"x.{suffix}", Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LumosXError, match=rf"x\.{suffix}"):
        load_image(path)


def test_a_changed_byte_in_a_png_is_noticed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path / "x.png", Image.fromarray(noise))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(LumosXError, match=r"x\.png.*save it again"):
        load_image(path)


def test_a_wrong_checksum_is_noticed_even_if_the_pixels_decode(tmp_path):
    path = saved(tmp_path / "x.png", Image.new("RGB", (40, 40), RED))
    data = bytearray(path.read_bytes())
    data[-13] ^= 1  # the last byte of the pixels' checksum, before the 12 bytes of the end
    path.write_bytes(data)
    with pytest.raises(LumosXError, match=r"x\.png.*save it again"):
        load_image(path)


def test_things_that_are_no_image_files(tmp_path):
    (tmp_path / "text.png").write_text("not an image\n" * 20)
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    expected = {
        "text.png": "none of these formats",
        "empty.png": "is empty",
        "folder.png": "is a folder",
        "pipe.png": "is a pipe",
        "absent.png": "No such file",
    }
    for name, reason in expected.items():
        with pytest.raises(LumosXError, match=reason) as refusal:
            load_image(tmp_path / name)
        assert name in str(refusal.value)
    with pytest.raises(LumosXError, match="cannot be opened"):
        load_image("a\0b.png")


_SEEDS = []

for _format in ("PNG", "JPEG", "WEBP", "BMP"):
    _buffer = BytesIO()
    Image.effect_mandelbrot((24, 16), (-2, -1, 1, 1), 20).convert("RGB").save(_buffer, _format)
    _SEEDS.append(_buffer.getvalue())


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(_SEEDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_give_an_image_or_a_refusal(tmp_path_factory, data, changes):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(damaged)
    try:
        image = load_image(path)
    except LumosXError as refusal:
        assert "damaged.bin" in str(refusal)
    else:
        assert fit_image(image, 8, 8).shape == (8, 8, 3)

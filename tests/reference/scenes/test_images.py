"""Reference images: the released preparation, and the formats that are read."""

import itertools
import os
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.images import (
    fit_image,
    load_image,
    picture_from,
    picture_of,
    to_unit,
)

GOLDEN = Path(os.environ.get("LUMOSX_GOLDEN_DIR", Path(__file__).parents[2] / "golden"))
RED, WHITE = (255, 0, 0), (255, 255, 255)


# -- preparation --------------------------------------------------------------------------------


def test_the_released_preparation():
    case = np.load(GOLDEN / "image_prep.npz")
    height, width = case["image_size"].tolist()
    count = sum(name.startswith("in_") for name in case.files)
    assert count >= 1
    for i in range(count):
        image = Image.fromarray(case[f"in_{i}"])
        fitted = fit_image(image, height, width, alpha="drop").transpose(2, 0, 1)
        assert np.abs(fitted.astype(int) - case[f"out_u8_{i}"]).max() <= 1
        if case[f"out_f32_{i}"].size:
            assert np.abs(to_unit(fitted) - case[f"out_f32_{i}"]).max() <= 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 60), st.integers(1, 60))
def test_one_colour_fills_exactly_the_fitted_box(w, h, height, width):
    fitted = fit_image(Image.new("RGB", (w, h), RED), height, width)
    scale = min(width / w, height / h)
    box_w, box_h = max(1, int(w * scale)), max(1, int(h * scale))
    left, top = (width - box_w) // 2, (height - box_h) // 2
    expected = np.full((height, width, 3), 255, np.uint8)
    expected[top : top + box_h, left : left + box_w] = RED
    assert fitted.dtype == np.uint8 and np.array_equal(fitted, expected)


def test_truncation_leaves_the_fitted_side_short():
    # 48 / 47 * 47 is a little below 48 in floating point for some sizes: find one as the rule says
    side = next(n for n in range(3, 200) if int(n * (48 / n)) == 47)
    fitted = fit_image(Image.new("RGB", (side, side), RED), 48, 48)
    assert (fitted == RED).all(-1).sum() == 47 * 47


def test_transparency_goes_onto_white_or_is_dropped_as_released():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    image.putpixel((1, 0), (0, 0, 0, 51))
    onto_white, dropped = fit_image(image, 4, 4), fit_image(image, 4, 4, alpha="drop")
    assert onto_white[0, 0].tolist() == [0, 0, 255]
    assert onto_white[3, 3].tolist() == [255, 255, 255]
    assert onto_white[0, 1].tolist() == [204, 204, 204]  # black at a fifth over white
    assert dropped[3, 3].tolist() == [255, 0, 0]
    with pytest.raises(LumosXError, match="'composite' and 'drop'"):
        fit_image(image, 4, 4, alpha="keep")  # type: ignore[arg-type]


def test_palettes_are_smoothed_unless_released():
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    smooth, released = fit_image(picture, 8, 16), fit_image(picture, 8, 16, alpha="drop")
    colours = {tuple(pixel) for pixel in released.reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), (200, 100, 50)}
    assert len({tuple(pixel) for pixel in smooth.reshape(-1, 3).tolist()}) > 4


def test_transparent_palette_entries_go_onto_white(tmp_path):
    picture = Image.new("P", (3, 3), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.save(tmp_path / "p.png", transparency=1)
    assert (fit_image(load_image(tmp_path / "p.png"), 3, 3) == 255).all()
    assert (fit_image(load_image(tmp_path / "p.png"), 3, 3, "drop") == (200, 100, 50)).all()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_modes_without_a_range_are_refused(mode):
    with pytest.raises(LumosXError, match=f"mode '{mode}'.*convert it to RGB"):
        fit_image(Image.new(mode, (4, 4)), 4, 4)


def test_frames_without_pixels_are_refused():
    with pytest.raises(LumosXError, match="no pixels"):
        fit_image(Image.new("RGB", (4, 4)), 0, 4)


def test_unit_range():
    assert to_unit(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]
    every = to_unit(np.arange(256, dtype=np.uint8))
    assert every.dtype == np.float32
    assert np.abs(every.astype(float) - (np.arange(256) / 255 * 2 - 1)).max() < 1e-6


# -- files --------------------------------------------------------------------------------------


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_accepted_formats(tmp_path, suffix):
    path = saved(tmp_path / f"x.{suffix}", Image.new("RGB", (9, 5), RED))
    image = load_image(path)
    assert image.size == (9, 5)
    assert np.abs(np.array(image.convert("RGB")).astype(int) - RED).max() < 6


def test_the_content_counts_not_the_suffix(tmp_path):
    saved(tmp_path / "x.png", Image.new("RGB", (3, 3)))
    (tmp_path / "x.png").rename(tmp_path / "x.dat")
    assert load_image(tmp_path / "x.dat").size == (3, 3)


@pytest.mark.parametrize("suffix", ["gif", "tiff", "ico", "ppm"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, suffix):
    saved(tmp_path / f"x.{suffix}", Image.new("RGB", (16, 16)))
    (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
    with pytest.raises(LumosXError, match=r"x\.png.*none of these formats.*PNG, JPEG, WEBP, BMP"):
        load_image(tmp_path / "x.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
    # how a camera stores it: the inverse of what the tag asks for (EXIF 2.3, tag 274)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    path = saved(tmp_path / "x.png", image, exif=exif)
    assert np.array_equal(np.array(load_image(path)), upright)
    assert np.array_equal(np.array(load_image(path, exif=False)), stored)
    # loaded and saved again it is not turned a second time
    again = saved(tmp_path / "again.png", load_image(path))
    assert np.array_equal(np.array(load_image(again)), upright)


def test_a_damaged_exif_block_turns_nothing(tmp_path):
    path = saved(tmp_path / "x.jpg", Image.new("RGB", (5, 3)), exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert load_image(path).size == (5, 3)


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path):
    values = np.array([[0, 255, 256], [0x1234, 0x8000, 0xFFFF]], np.uint16)
    image = load_image(saved(tmp_path / "x.png", Image.fromarray(values)))
    assert image.mode == "L"
    assert np.array(image).tolist() == [[0, 0, 1], [0x12, 0x80, 0xFF]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_file_modes_all_end_as_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    path = saved(tmp_path / f"x.{suffix}", Image.new("RGB", (8, 8), WHITE).convert(mode))
    assert (fit_image(load_image(path), 8, 8) >= 250).all()


def test_metadata_is_dropped(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    path = saved(tmp_path / "x.png", Image.new("P", (4, 4)), exif=exif, transparency=0, dpi=(9, 9))
    with Image.open(path) as image:
        image.load()
        assert {"exif", "dpi", "transparency"} <= set(image.info)
    assert set(load_image(path).info) == {"transparency"}


# -- in memory ----------------------------------------------------------------------------------


def phone(path: Path, suffix: str = "jpg", orientation: int = 6) -> Path:
    """A picture, red above, that is stored lying, as phones store them."""
    pixels = np.zeros((96, 64, 3), np.uint8)
    pixels[:48] = (220, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path.with_suffix(f".{suffix}"), exif=exif)
    return path.with_suffix(f".{suffix}")


@pytest.mark.parametrize("exif", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_in_memory_is_treated_as_its_file(tmp_path, suffix, orientation, exif):
    path = phone(tmp_path / "phone", suffix, orientation)
    by_path = np.asarray(load_image(path, exif=exif))
    opened = Image.open(path)
    in_memory = {
        "opened": opened,
        "decoded": Image.open(path).convert("RGB"),
        "bytes": path.read_bytes(),
        "buffer": BytesIO(path.read_bytes()),
        "file": path.open("rb"),
    }
    for name, given_ in in_memory.items():
        found = picture_of(picture_from(given_), exif=exif)
        assert np.array_equal(np.asarray(found), by_path), name
        assert not found.getexif()
    assert opened.getexif()[0x0112] == orientation  # the caller's image is as it was


def test_arrays_and_tensors_are_the_picture_that_they_hold():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for given_ in (
        pixels, np.asfortranarray(pixels), pixels / 255, (pixels / 255).astype(np.float16),
        tensor, tensor / 255,
    ):  # fmt: skip
        assert np.array_equal(np.asarray(picture_from(given_)), pixels)
    assert picture_from(pixels[..., :1]).mode == picture_from(pixels[..., 0]).mode == "L"
    assert picture_from(np.dstack([pixels, pixels[..., 0]])).mode == "RGBA"
    kept = picture_from(given_ := pixels.copy())
    given_[:] = 0
    assert np.array_equal(np.asarray(kept), pixels)


@pytest.mark.parametrize(
    "wrong",
    [
        None, 3, ["a.png"], {}, b"", b"nonsense", BytesIO(b"GIF89a"), StringIO("text"),
        np.zeros((3, 8, 8), np.uint8), np.zeros(5), np.zeros((0, 4, 3)), np.zeros((4, 4), np.int64),
        np.full((4, 4), 255.0), np.full((4, 4), np.nan), np.zeros((2, 2, 2, 2, 3), np.uint8),
        torch.zeros(8, 8, 3), torch.zeros(4, 4, dtype=torch.int64), torch.zeros(0),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(LumosXError, match="image"):
        picture_from(wrong)


def test_a_damaged_picture_in_memory_is_refused(tmp_path):
    whole = phone(tmp_path / "phone").read_bytes()
    for given_ in (whole[:-40], Image.open(BytesIO(whole[:-40]))):
        with pytest.raises(LumosXError, match="image in memory cannot be read"):
            picture_of(picture_from(given_))
    with Image.open(BytesIO(whole)) as closed:
        pass
    closed.close()
    with pytest.raises(LumosXError, match="image in memory"):
        picture_of(closed)


def test_metadata_larger_than_the_picture_is_skipped(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, 1_500_000).astype(np.uint8).tobytes()
    texts = {"tEXt": ("add_text", False), "zTXt": ("add_text", True), "iTXt": ("add_itxt", True)}
    picture = Image.new("RGB", (32, 32), RED)
    picture.save(tmp_path / "profile.png", icc_profile=noise)
    for name, (add, zipped) in texts.items():
        info = PngImagePlugin.PngInfo()
        getattr(info, add)("workflow", "x" * 1_500_000, zip=zipped)
        picture.save(tmp_path / f"{name}.png", pnginfo=info)
    for path in sorted(tmp_path.glob("*.png")):
        assert np.array_equal(np.asarray(load_image(path)), np.asarray(picture)), path.name
        assert picture_of(picture_from(path.read_bytes())).size == (32, 32)


def test_an_orientation_among_the_texts_of_a_png_counts(tmp_path):
    info = PngImagePlugin.PngInfo()
    turned = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", turned)
    info.add_text("workflow", "x" * 1_500_000, zip=True)
    Image.new("RGB", (32, 16), RED).save(tmp_path / "turned.png", pnginfo=info)
    assert load_image(tmp_path / "turned.png").size == (16, 32)
    assert load_image(tmp_path / "turned.png", exif=False).size == (32, 16)

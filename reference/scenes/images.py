"""Reference images: hardened reading, and the preparation LumosX was trained with
(docs/spec.md#picture-preparation).

A reference image comes from anywhere, so a file is read under limits: four formats, bytes counted
before they are read, pixels counted from the header before they are decoded. Preparation is the
released one (fit inside the frame on white, Pillow bicubic) but for transparency: the release
pastes and so shows whatever colour lies under transparent pixels; the default here composites onto
white first. `alpha="drop"` is the release.
"""

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64_000_000

Alpha = Literal["composite", "drop"]

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def load_image(path: str | os.PathLike[str], *, exif: bool = True) -> Image.Image:
    """Read a PNG, JPEG, WEBP or BMP file, fully decoded, the first frame of an animation.

    The EXIF orientation is applied and all metadata dropped; `exif=False` leaves the pixels as they
    are stored, as the release does. 16-bit grey is brought to 8 bits. The mode is otherwise the
    file's. Raises LumosXError for a file that is missing, empty, not an image of these formats,
    damaged, or above MAX_FILE_BYTES or MAX_PIXELS.
    """
    with open_regular(path, MAX_FILE_BYTES, "image") as file:
        data = file.read(MAX_FILE_BYTES)
    name = os.fspath(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on bombs and damaged EXIF: handled here
            with Image.open(BytesIO(data), formats=FORMATS) as header:
                check_pixels(header, f"image '{name}'")
                header.verify()
            image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
            image.load()
            orientation = _orientation(image) if exif else 1
    except LumosXError:
        raise
    except Image.DecompressionBombError as error:
        raise LumosXError(
            f"image '{name}' has far more than the {MAX_PIXELS:,} pixels accepted; scale it down"
        ) from error
    except Exception as error:  # a hostile file makes decoders raise nearly anything
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is none of these formats, whatever its name says"
        raise LumosXError(
            f"image '{name}' cannot be read: {reason}; accepted are whole {', '.join(FORMATS)} "
            "files, so save it again as PNG"
        ) from error
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info = {k: v for k, v in image.info.items() if k == "transparency"}
    return _eight_bit(image)


def check_pixels(image: Image.Image, what: str) -> None:
    """Raise LumosXError for an image without pixels or with more than MAX_PIXELS."""
    pixels = image.width * image.height
    if not 0 < pixels <= MAX_PIXELS:
        raise LumosXError(
            f"{what} is {image.width} x {image.height}, accepted are 1 to {MAX_PIXELS:,} pixels; "
            "scale it"
        )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where the EXIF block is damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by its high byte, which is what Pillow does for 16-bit colour."""
    if image.mode in _MODES_16_BIT:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _MODES:
        raise LumosXError(
            f"image: mode '{image.mode}' has no agreed range, accepted are {', '.join(_MODES)} "
            "and 16-bit grey; convert it to RGB"
        )
    return image


def _onto_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def fit_image(
    image: Image.Image, height: int, width: int, alpha: Alpha = "composite"
) -> NDArray[np.uint8]:
    """Return the image inside a white frame, as LumosX prepares it: uint8 [height, width, 3]
    (docs/spec.md#picture-preparation).

    Scaled to fit, enlarged too if small, and centred. "composite" puts transparent pixels onto
    white and palettes into RGB before scaling; "drop" is the release: scaled in the original mode
    (palettes without smoothing), transparency ignored. Raises LumosXError for an unknown `alpha`,
    an empty frame or a mode without an agreed range.
    """
    if alpha not in ("composite", "drop"):
        raise LumosXError(f"alpha: got '{alpha}', accepted are 'composite' and 'drop'")
    if height < 1 or width < 1:
        raise LumosXError(f"frame: {width} x {height} has no pixels; give a height and a width")
    check_pixels(image, "image")
    image = _eight_bit(image)
    if alpha == "composite":
        image = _onto_white(image)
    scale = min(width / image.width, height / image.height)
    # int(), not round(): the fitted side may end one pixel short, as in training
    fitted = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    canvas = Image.new("RGB", (width, height), "white")
    corner = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), corner)
    return np.array(canvas)


def to_unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the bytes to -1..1 in float32, any shape: x / 255 * 2 - 1
    (docs/spec.md#picture-preparation)."""
    return pixels.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def picture_of(image: Path | Image.Image, *, exif: bool = True) -> Image.Image:
    """Return the picture itself: a file is loaded, an image in memory is checked and taken as it
    is."""
    if isinstance(image, Image.Image):
        check_pixels(image, "image in memory")
        return _eight_bit(image)
    return load_image(image, exif=exif)

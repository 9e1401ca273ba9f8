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
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64_000_000

Alpha = Literal["composite", "drop"]
Picture: TypeAlias = (
    "str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor | bytes | BinaryIO"
)
"""What `picture_from` takes."""

_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_MAX_TEXT_BYTES = 1 << 16
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
    name = f"image '{os.fspath(path)}'"
    data = without_texts(data)
    with _decoding(name):
        with Image.open(BytesIO(data), formats=FORMATS) as header:
            check_pixels(header, name)
            header.verify()
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        image.load()
        image = _upright(image) if exif else image
    return _bare(image)  # it is nobody else's


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one LumosXError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on bombs and damaged EXIF: handled here
            yield
    except (LumosXError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadInput(
            f"{name} has far more than the {MAX_PIXELS:,} pixels accepted; scale it down"
        ) from error
    except Exception as error:  # a hostile file makes decoders raise nearly anything
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is none of these formats, whatever its name says"
        raise BadInput(
            f"{name} cannot be read: {reason}; accepted are whole {', '.join(FORMATS)} "
            "files, so save it again as PNG"
        ) from error


def without_texts(data: bytes) -> bytes:
    """Return a PNG file without its texts and colour profile, which may be larger than the picture.

    Texts that can hold the orientation stay. Any other file comes back as it is.
    """
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, content = data[at + 4 : at + 8], data[at + 8 : end - 4]
        oriented = content.startswith(_ORIENTED) and len(content) <= _MAX_TEXT_BYTES
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") or (kind != b"iCCP" and oriented):
            kept.append(data[at:end])
        at = end
    kept.append(data[at:])  # what is no chunk is the decoder's to refuse
    return b"".join(kept)


def check_pixels(image: Image.Image, what: str) -> None:
    """Raise LumosXError for an image without pixels or with more than MAX_PIXELS."""
    pixels = image.width * image.height
    if not 0 < pixels <= MAX_PIXELS:
        raise BadInput(
            f"{what} is {image.width} x {image.height}, accepted are 1 to {MAX_PIXELS:,} pixels; "
            "scale it"
        )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where the EXIF block is damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    way = _UPRIGHT.get(_orientation(image))
    return image if way is None else image.transpose(way)


def _bare(image: Image.Image) -> Image.Image:
    """Make it 8 bits deep, and take its metadata away."""
    image = _eight_bit(image)
    image.info = {k: v for k, v in image.info.items() if k == "transparency"}
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by its high byte, which is what Pillow does for 16-bit colour."""
    if image.mode in _MODES_16_BIT:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _MODES:
        raise BadInput(
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
        raise BadInput(f"alpha: got '{alpha}', accepted are 'composite' and 'drop'")
    if height < 1 or width < 1:
        raise BadInput(f"frame: {width} x {height} has no pixels; give a height and a width")
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
    """Return the picture itself, decoded: a file is loaded, an image in memory treated as one.

    An image that still says how it is to be turned is turned, as a file is. Raises LumosXError.
    """
    if not isinstance(image, Image.Image):
        return load_image(image, exif=exif)
    check_pixels(image, "image in memory")
    with _decoding("image in memory"):
        image.load()  # it may have been opened and not read yet
        image = _upright(image) if exif else image
    return _bare(image.copy())


def picture_from(given: Any) -> Path | Image.Image:
    """Take a picture in any form that people have it in: a path, or an image in memory.

    Accepted are paths, PIL images, numpy arrays [height, width] or [height, width, 1, 3 or 4],
    torch tensors [1, 3 or 4, height, width], and an encoded file as bytes or an open binary file.
    Numbers are uint8, or floats from 0 to 1. Raises LumosXError for everything else.
    """
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, str | os.PathLike):
        return Path(os.fsdecode(given))
    if isinstance(given, bytes | bytearray | memoryview):
        return _from_bytes(bytes(given))
    if callable(getattr(given, "read", None)):
        data = given.read(MAX_FILE_BYTES + 1)
        if isinstance(data, bytes):
            return _from_bytes(data)
    if isinstance(given, np.ndarray):
        return _from_numbers(given, f"numpy array {list(given.shape)}")
    if type(given).__module__ == "torch" and hasattr(given, "permute"):
        values = given.detach().cpu()
        if values.dim() == 3:
            values = values.permute(1, 2, 0)
        if values.is_floating_point():
            values = values.float()
        return _from_numbers(values.numpy(), f"torch tensor {list(given.shape)}")
    raise BadInput(
        f"image: got {type(given).__name__}, accepted are a path, a PIL image, a numpy array "
        "[height, width, channels], a torch tensor [channels, height, width], or a file as bytes"
    )


def _from_bytes(data: bytes) -> Image.Image:
    if not 0 < len(data) <= MAX_FILE_BYTES:
        raise BadInput(
            f"image in memory: a file of {len(data):,} bytes, accepted are 1 to {MAX_FILE_BYTES:,}"
        )
    with _decoding("image in memory"):
        return Image.open(BytesIO(without_texts(data)), formats=FORMATS)


def _from_numbers(values: NDArray[Any], what: str) -> Image.Image:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    shaped = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    if not shaped or not values.size:
        raise BadInput(
            f"image: {what}, accepted are numpy [height, width] or [height, width, 1, 3 or 4], and "
            "torch [1, 3 or 4, height, width]"
        )
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and 0 <= values.min() and values.max() <= 1):
            raise BadInput(
                f"image: {what} has numbers from {values.min():.3g} to {values.max():.3g}, "
                "accepted are floats from 0 to 1, or uint8"
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise BadInput(f"image: {what} is {values.dtype}, accepted are uint8, or floats 0 to 1")
    return Image.fromarray(np.array(values, order="C"))  # a copy: theirs may change

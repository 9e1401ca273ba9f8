"""Two pictures for people: what came out (a contact sheet), and what a layout means.

Drawn with Pillow alone, from parts that are stacked, so that no text can run into another.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lumosx_rt.drawing.typesetting import (
    FAINT,
    MARGIN,
    PAPER,
    beside,
    drawable,
    framed,
    grid,
    paragraph,
    stack,
    text_line,
)
from lumosx_rt.reference.errors import BadInput

Spans = list[list[tuple[int, int]]]
Words = Sequence[str]


# -- contact sheet ------------------------------------------------------------------------------


def contact_sheet(
    references: Sequence[tuple[str, NDArray[np.uint8]]],
    frames: NDArray[np.uint8],
    columns: int = 4,
    title: str = "",
) -> Image.Image:
    """References with their words, beside frames chosen evenly from the first to the last.

    references: (word, uint8 [height, width, 3]); frames: uint8 [frames, height, width, 3], shown in
    `columns` columns. Small frames are enlarged by a whole number without smoothing, large ones
    scaled down. Raises LumosXError for frames of another shape.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise BadInput(
            f"contact sheet: frames must be uint8 [frames, height, width, 3], got {frames.dtype} "
            f"{list(frames.shape)}"
        )
    if columns < 1:
        raise BadInput(f"contact sheet: columns must be at least 1, got {columns}")
    held = -(-len(references) // 4)  # columns of references, four to a column
    rows = max(2, min(4, len(references)))
    shown = _evenly(len(frames), columns * rows)
    size = _cell_size(*frames.shape[1:3])
    parts = []
    if references:
        cells = [_cell(picture, drawable(word), size) for word, picture in references]
        parts.append(stack([text_line("references", 15, FAINT), grid(cells, held)], 6))
    cells = [_cell(frames[i], f"frame {i + 1}", size) for i in shown]
    heading = f"{len(shown)} of {len(frames)} frames" if len(shown) < len(frames) else "frames"
    parts.append(stack([text_line(heading, 15, FAINT), grid(cells, columns)], 6))
    body = beside(parts, MARGIN)
    if title:
        body = stack([paragraph(drawable(title), 22, body.width), body], 14)
    return framed(body)


def _evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` places, evenly from the first to the last; all if there are fewer."""
    shown = min(count, wanted)
    return [round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)]


def _cell_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of a picture on the sheet: a whole multiple, or at most 416 wide."""
    factor = max(1, min(320 // width, 320 // height))
    scale = min(1.0, 416 / (width * factor), 416 / (height * factor))
    return max(1, round(width * factor * scale)), max(1, round(height * factor * scale))


def _cell(picture: NDArray[np.uint8], label: str, size: tuple[int, int]) -> Image.Image:
    """A picture centred in a cell, with its label below."""
    image = Image.fromarray(picture)
    scale = min(size[0] / image.width, size[1] / image.height)
    scale = int(scale) if scale >= 1 else scale
    fitted = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    cell = Image.new("RGB", (size[0] + 2, size[1] + 2), "#d5d9e0")
    cell.paste(PAPER, (1, 1, size[0] + 1, size[1] + 1))
    corner = 1 + (size[0] - fitted[0]) // 2, 1 + (size[1] - fitted[1]) // 2
    cell.paste(image.resize(fitted, smooth), corner)
    return stack([cell, paragraph(label, 15, cell.width)], 3)


# -- layout -------------------------------------------------------------------------------------


# -- parts --------------------------------------------------------------------------------------

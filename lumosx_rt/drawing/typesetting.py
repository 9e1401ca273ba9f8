"""Text and pictures put together on paper: parts that are stacked cannot run into another."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

MARGIN = 24
INK, FAINT, PAPER, ALARM = "#20242c", "#6b7280", "#ffffff", "#c62828"


def drawable(text: str) -> str:
    """Return `text` in the letters that Pillow's own font has, one for one; white space becomes
    blanks."""
    plain = text.translate(str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--"))
    plain = "".join(" " if letter.isspace() else letter for letter in plain)
    bases = (unicodedata.normalize("NFKD", letter)[0] for letter in plain)
    return "".join(
        base if letter > "~" > base else letter for letter, base in zip(plain, bases, strict=True)
    )


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def text_width(text: str, size: int = 13) -> int:
    return int(font_of(size).getlength(text)) + 1


def shortened(text: str, width: int) -> str:
    """Return `text`, or its beginning and an ellipsis, if it is too long for a label."""
    if text_width(text) <= width:
        return text
    while text and text_width(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def centred(
    pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], text: str, size: int, ink: str
) -> None:
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    pen.text(middle, text, ink, font_of(size), anchor="mm")


def wrapped(text: str, size: int, width: int) -> list[tuple[int, float]]:
    """Return (line, x) of every character, broken at spaces, and within words that are too long."""
    font, places, line, x = font_of(size), list[tuple[int, float]](), 0, 0.0
    for unit in re.findall(r"\s+|\S+", text):
        if not unit.isspace() and x > 0 and x + font.getlength(unit) > width:
            line, x = line + 1, 0.0
        start, base = x, 0
        for at in range(len(unit)):
            right = start + font.getlength(unit[base : at + 1])
            if right > width and not unit.isspace() and at > base:
                line, start, base = line + 1, 0.0, at
            places.append((line, start + font.getlength(unit[base:at])))
        x = start + font.getlength(unit[base:])
    return places


def text_line(text: str, size: int, ink: str = INK) -> Image.Image:
    return paragraph(text, size, text_width(text, size), ink)


def paragraph(
    text: str, size: int, width: int, ink: str = INK, centred: bool = False
) -> Image.Image:
    """Wrapped text on paper of the given width."""
    places, leading = wrapped(text, size, width), round(size * 1.3)
    lines: dict[int, str] = {}
    for letter, (line, _) in zip(text, places, strict=True):
        lines[line] = lines.get(line, "") + (" " if letter.isspace() else letter)
    image = Image.new("RGB", (max(1, width), leading * max(1, len(lines))), PAPER)
    pen = ImageDraw.Draw(image)
    for line, content in lines.items():
        spot = (width / 2 if centred else 0, leading * line + size)
        pen.text(spot, content.strip(), ink, font_of(size), anchor="ms" if centred else "ls")
    return image


def stack(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    """Parts below each other, their left edges in line."""
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    page = Image.new("RGB", (max(part.width for part in parts), height), PAPER)
    y = 0
    for part in parts:
        page.paste(part, (0, y))
        y += part.height + gap
    return page


def beside(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    """Parts beside each other, their tops in line."""
    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    page = Image.new("RGB", (width, max(part.height for part in parts)), PAPER)
    x = 0
    for part in parts:
        page.paste(part, (x, 0))
        x += part.width + gap
    return page


def framed(part: Image.Image) -> Image.Image:
    page = Image.new("RGB", (part.width + 2 * MARGIN, part.height + 2 * MARGIN), PAPER)
    page.paste(part, (MARGIN, MARGIN))
    return page


def grid(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return stack([beside(row, 8) for row in rows], 10)

"""Charts for measured times: curves and bars, drawn with Pillow."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from lumosx_rt.drawing.typesetting import FAINT, INK, PAPER, font_of, stack, text_line, text_width

COLOURS = ("#2a7fb8", "#d1495b", "#3c9d5d", "#c77d0a", "#8257b5", "#0f8b8d")
GRID = "#e4e7eb"
WIDTH, HEIGHT = 440, 260
LEFT, BELOW, ABOVE, RIGHT = 64, 44, 12, 18
TICKS = 5
BAR, GAP, LONGEST = 22, 10, 460

Point = tuple[float, float]


def ticks(highest: float, count: int = TICKS) -> list[float]:
    """Round numbers from 0 up to at least `highest`, about `count` of them."""
    if not highest > 0:
        return [0.0, 1.0]
    raw = highest / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    return [i * step for i in range(math.ceil(highest / step - 1e-9) + 1)]


def curves(title: str, across: str, up: str, series: Mapping[str, Sequence[Point]]) -> Image.Image:
    """Lines through (x, y) points, each axis from 0; across and up say what the axes are."""
    points = [point for line in series.values() for point in line]
    x_ticks = ticks(max((x for x, _ in points), default=1))
    y_ticks = ticks(max((y for _, y in points), default=1))
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen, font = ImageDraw.Draw(image), font_of(12)
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - ABOVE - BELOW

    def place(x: float, y: float) -> Point:
        return LEFT + x / x_ticks[-1] * wide, HEIGHT - BELOW - y / y_ticks[-1] * tall

    for y in y_ticks:
        pen.line([place(0, y), place(x_ticks[-1], y)], GRID)
        pen.text((LEFT - 8, place(0, y)[1]), f"{y:g}", FAINT, font, anchor="rm")
    for x in x_ticks:
        pen.line([place(x, 0), place(x, y_ticks[-1])], GRID)
        pen.text((place(x, 0)[0], HEIGHT - BELOW + 6), f"{x:g}", FAINT, font, anchor="mt")
    for colour, line in zip(_cycle(len(series)), series.values(), strict=True):
        spots = [place(x, y) for x, y in sorted(line)]
        pen.line(spots, colour, 2)
        for x, y in spots:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    pen.text((LEFT + wide / 2, HEIGHT - 4), across, INK, font, anchor="mb")
    parts = [text_line(title, 16), text_line(up, 12, FAINT), image]
    if len(series) > 1:
        parts.insert(2, _legend(list(series)))
    return stack(parts, 4)


def frontier(
    title: str,
    across: str,
    up: str,
    points: Sequence[tuple[str, str, float, float, float, float]],
) -> Image.Image:
    """Points (kind, name, x, y, low, high) with an interval in y; those that none beats, in less x
    and more y, joined by a line. x from 0, y from just below the lowest interval."""
    if len({point[3:] for point in points}) == 1:
        return stack(
            [text_line(title, 16), text_line(f"{up} is {points[0][3]:.3g} everywhere", 12)], 4
        )
    kinds = list(dict.fromkeys(kind for kind, *_ in points))
    colours = dict(zip(kinds, _cycle(len(kinds)), strict=True))
    x_ticks = ticks(max(point[2] for point in points))
    bottom, top = min(point[4] for point in points), max(point[5] for point in points)
    y_ticks = ticks((top - bottom) or 1)
    step = y_ticks[1]
    base = math.floor(bottom / step) * step
    y_ticks = [base + i * step for i in range(max(math.ceil((top - base) / step - 1e-9), 1) + 1)]
    wide, tall = 720 - LEFT - RIGHT, 340 - ABOVE - BELOW
    image = Image.new("RGB", (720, 340), PAPER)
    pen, font, small = ImageDraw.Draw(image), font_of(12), font_of(11)

    def place(x: float, y: float) -> Point:
        share = (y - base) / (y_ticks[-1] - base)
        return LEFT + x / x_ticks[-1] * wide, 340 - BELOW - share * tall

    for y in y_ticks:
        pen.line([place(0, y), place(x_ticks[-1], y)], GRID)
        pen.text((LEFT - 8, place(0, y)[1]), f"{y:.3g}", FAINT, font, anchor="rm")
    for x in x_ticks:
        pen.line([place(x, base), place(x, y_ticks[-1])], GRID)
        pen.text((place(x, base)[0], 340 - BELOW + 6), f"{x:g}", FAINT, font, anchor="mt")
    best, line = -math.inf, []
    for _, _, x, y, _, _ in sorted(points, key=lambda point: (point[2], -point[3])):
        if y > best:
            best = y
            line.append(place(x, y))
    pen.line(line, FAINT, 1)
    for kind, name, x, y, low, high in points:
        at = place(x, y)
        pen.line([place(x, low), place(x, high)], colours[kind], 1)
        pen.ellipse((at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4), colours[kind])
        pen.text((at[0] + 6, at[1] - 4), name, colours[kind], small, anchor="lb")
    pen.text((LEFT + wide / 2, 340 - 4), across, INK, font, anchor="mb")
    return stack([text_line(title, 16), text_line(up, 12, FAINT), _legend(kinds), image], 4)


def bars(
    title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float], str]]
) -> Image.Image:
    """Horizontal bars (name, parts, note): parts lie end to end, the note stands behind them."""
    kinds = list(dict.fromkeys(kind for _, parts, _ in rows for kind in parts))
    colours = dict(zip(kinds, _cycle(len(kinds)), strict=True))
    longest = max((sum(parts.values()) for _, parts, _ in rows), default=0) or 1
    names = max((text_width(name) for name, _, _ in rows), default=0) + 10
    notes = max((text_width(note) for _, _, note in rows), default=0) + 10
    size = (names + LONGEST + notes, len(rows) * (BAR + GAP) or 1)
    image = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(image), font_of(13)
    for i, (name, parts, note) in enumerate(rows):
        top, x = i * (BAR + GAP), float(names)
        pen.text((names - 10, top + BAR / 2), name, INK, font, anchor="rm")
        for kind, value in parts.items():
            right = x + value / longest * LONGEST
            if value > 0:
                pen.rectangle((x, top, right, top + BAR), colours[kind])
            x = right
        pen.text((x + 8, top + BAR / 2), note, INK, font, anchor="lm")
    heading = [text_line(title, 16), text_line(unit, 12, FAINT)]
    if len(kinds) > 1:
        heading.append(_legend(kinds))
    return stack([*heading, image], 6)


def _legend(names: Sequence[str]) -> Image.Image:
    width = sum(text_width(name, 12) + 34 for name in names)
    image = Image.new("RGB", (width, 18), PAPER)
    pen, x = ImageDraw.Draw(image), 0
    for colour, name in zip(_cycle(len(names)), names, strict=True):
        pen.rectangle((x, 4, x + 12, 14), colour)
        pen.text((x + 17, 9), name, INK, font_of(12), anchor="lm")
        x += text_width(name, 12) + 34
    return image


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]

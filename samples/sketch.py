"""Paper and pen for the sample pictures: filled curves, drawn four times too large, scaled down."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

SIZE = 128  # pixels to the height of 100 units
OVERSAMPLING = 4
CLEAR = "#ffffff00"  # white under the transparency: readers that ignore it show white

Point = tuple[float, float]
Points = Sequence[Point]


def mix(a: str, b: str, share: float) -> str:
    """The colour that lies `share` of the way from `a` to `b`, as #rrggbb."""
    channels = [(int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in channels)


def dark(colour: str, share: float = 0.28) -> str:
    return mix(colour, "#1c1830", share)


def light(colour: str, share: float = 0.35) -> str:
    return mix(colour, "#ffffff", share)


def at(path: str, right: float = 0.0) -> list[Point]:
    """The points of a path written as "x,y x,y ...", moved to the right."""
    pairs = (point.split(",") for point in path.split())
    return [(float(x) + right, float(y)) for x, y in pairs]


def pair(path: str, axis: float = 50.0) -> list[Point]:
    """The points of a path, and their mirror images on the way back."""
    points = at(path)
    return [*points, *((2 * axis - x, y) for x, y in reversed(points) if x != axis)]


def twins(path: str, axis: float = 50.0) -> tuple[list[Point], list[Point]]:
    """The path, and its mirror image apart."""
    points = at(path)
    return points, [(2 * axis - x, y) for x, y in points]


def closed_curve(points: Points, steps: int = 10) -> list[Point]:
    """A Catmull-Rom curve through all the points and back to the first."""

    def between(a: float, b: float, c: float, d: float, t: float) -> float:
        bend = 2 * a - 5 * b + 4 * c - d
        return b + ((c - a) * t + bend * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2

    curve = []
    for i in range(len(points)):
        corners = [points[(i + k) % len(points)] for k in (-1, 0, 1, 2)]
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
        for t in (step / steps for step in range(steps)):
            curve.append((between(ax, bx, cx, dx, t), between(ay, by, cy, dy, t)))
    return curve


class Sketch:
    """A sheet of paper 100 units high; no ground means transparent."""

    def __init__(self, ground: str = CLEAR, width: float = 100.0) -> None:
        self.unit = SIZE / 100 * OVERSAMPLING
        size = round(width * self.unit), round(100 * self.unit)
        self.image = Image.new("RGBA", size, ground)
        self.pen = ImageDraw.Draw(self.image)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: str) -> None:
        corners = (x - rx, y - ry, x + rx, y + ry)
        self.pen.ellipse([c * self.unit for c in corners], fill=fill)

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill)

    def polygon(self, points: Points, fill: str) -> None:
        self.pen.polygon([(x * self.unit, y * self.unit) for x, y in points], fill=fill)

    def blob(self, points: Points, fill: str, edge: str | None = None) -> None:
        """The smooth closed curve through the points, filled, with a thin edge."""
        curve = closed_curve(points)
        self.polygon(curve, fill)
        if edge:
            self.stroke([*curve, curve[0], curve[1]], edge, 1.2)

    def stroke(self, points: Points, colour: str, width: float) -> None:
        """A line with round joints and ends."""
        path = [(x * self.unit, y * self.unit) for x, y in points]
        self.pen.line(path, fill=colour, width=round(width * self.unit), joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, width / 2, width / 2, colour)

    def arc(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        start: float,
        end: float,
        colour: str,
        width: float,
    ) -> None:
        """Part of an ellipse, in degrees clockwise from the right."""
        angles = [math.radians(start + (end - start) * i / 24) for i in range(25)]
        turns = [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]
        self.stroke(turns, colour, width)

    def checks(self, points: Points, colour: str, step: float) -> None:
        """A chessboard of `colour` inside the polygon."""
        board = Image.new("L", self.image.size)
        pen, side = ImageDraw.Draw(board), step * self.unit
        for row in range(math.ceil(board.height / side)):
            for column in range(row % 2, math.ceil(board.width / side), 2):
                x, y = column * side, row * side
                pen.rectangle([x, y, x + side, y + side], fill=255)
        inside = Image.new("L", self.image.size)
        shape = [(x * self.unit, y * self.unit) for x, y in points]
        ImageDraw.Draw(inside).polygon(shape, fill=255)
        squares = Image.composite(inside, Image.new("L", board.size), board)
        self.image.paste(Image.new("RGBA", board.size, colour), (0, 0), squares)

    def picture(self, cut_out: bool = False) -> Image.Image:
        """What is drawn, at its size: RGB on white, or a cut-out in RGBA."""
        size = self.image.width // OVERSAMPLING, self.image.height // OVERSAMPLING
        small = self.image.resize(size, Image.Resampling.LANCZOS)
        if not cut_out:
            return Image.alpha_composite(Image.new("RGBA", size, "white"), small).convert("RGB")
        drawn = small.getchannel("A").point([0, *[255] * 255])
        return Image.composite(small, Image.new("RGBA", size, CLEAR), drawn)

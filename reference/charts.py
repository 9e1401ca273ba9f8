"""Charts of measured numbers, all in one style: curves, bars, and points of a trade-off.

Drawn by matplotlib, returned as pictures that pages put together.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lumosx_rt.reference.packages import require

COLOURS = ("#2a7fb8", "#d1495b", "#3c9d5d", "#c77d0a", "#8257b5", "#0f8b8d")
GREY = "#6b7280"
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}

Point = tuple[float, float]


class Measured(NamedTuple):
    """A point of a trade-off with an interval of its height."""

    kind: str
    """Gives its colour."""
    label: str
    x: float
    y: float
    low: float
    high: float


def curves(
    title: str,
    across: str,
    up: str,
    series: Mapping[str, Sequence[Point]],
    *,
    logarithmic: bool = False,
    marks: Mapping[str, float] | None = None,
    size: tuple[float, float] = (4.4, 3.1),
) -> Image.Image:
    """Draw lines through (x, y) points; across and up name the axes.

    logarithmic: of the upright axis, which begins at 0 otherwise. marks: upright lines, by name.
    size: width and height in hundreds of pixels.
    """
    figure, axes = _figure(*size, title, across, up)
    for colour, (name, points) in zip(_cycle(len(series)), series.items(), strict=True):
        xs, ys = zip(*sorted(points), strict=True)
        dot = "o" if len(points) < 40 else None
        axes.plot(xs, ys, color=colour, label=name, marker=dot)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    for name, x in (marks or {}).items():
        axes.axvline(x, color=GREY, linewidth=1)
        place = axes.get_xaxis_transform()
        axes.text(x, 1.0, f" {name}", color=GREY, transform=place, va="top", size="small")
    if len(series) > 1:
        axes.legend(frameon=False)
    return image_of(figure)


def bars(
    title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float], str]]
) -> Image.Image:
    """Draw horizontal bars (name, parts, note), parts end to end, the note behind them."""
    kinds = list(dict.fromkeys(kind for _, parts, _ in rows for kind in parts))
    figure, axes = _figure(8.4, 1.1 + 0.34 * max(len(rows), 1), title, unit, "")
    ends = [0.0] * len(rows)
    for colour, kind in zip(_cycle(len(kinds)), kinds, strict=True):
        lengths = [parts.get(kind, 0.0) for _, parts, _ in rows]
        axes.barh(range(len(rows)), lengths, left=ends, color=colour, label=kind, height=0.7)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for row, (end, (_, _, note)) in enumerate(zip(ends, rows, strict=True)):
        axes.annotate(note, (end, row), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(ends, default=0.0) or 1.0)  # notes stand to the right of the axes
    if len(kinds) > 1:
        _legend_above(axes, len(kinds))
    return image_of(figure)


def frontier(title: str, across: str, up: str, points: Sequence[Measured]) -> Image.Image:
    """Draw points with intervals, and a line through those that none beats (less x, more y)."""
    return image_of(frontier_figure(title, across, up, points))


def frontier_figure(title: str, across: str, up: str, points: Sequence[Measured]) -> Any:
    """Make the figure of `frontier`, with labels that do not overlap."""
    figure, axes = _figure(7.2, 4.0, title, across, up)
    kinds = list(dict.fromkeys(point.kind for point in points))
    for colour, kind in zip(_cycle(len(kinds)), kinds, strict=True):
        own = [point for point in points if point.kind == kind]
        xs, ys = [point.x for point in own], [point.y for point in own]
        reach = [[p.y - p.low for p in own], [p.high - p.y for p in own]]
        axes.errorbar(xs, ys, reach, color=colour, label=kind, linestyle="none", marker="o")
    front = unbeaten(points)
    axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1, zorder=0)
    labels = [
        axes.annotate(point.label, (point.x, point.y), (6, 4), textcoords="offset points", size=9)
        for point in points
        if point.label
    ]
    axes.margins(x=0.1, y=0.15)
    axes.set_xlim(left=0)
    if len(kinds) > 1:
        _legend_above(axes, len(kinds))
    _spread(figure, labels)
    return figure


def unbeaten(points: Sequence[Measured]) -> list[Point]:
    """Return the points that no other beats, in less x and more y, from the left."""
    best, found = float("-inf"), []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if point.y > best:
            best = point.y
            found.append((point.x, point.y))
    return found


def image_of(figure: Any) -> Image.Image:
    """Draw a figure as a picture."""
    for _ in range(3):  # notes beside the axes move as the axes shrink to make room for them
        figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def _figure(width: float, height: float, title: str, across: str, up: str) -> tuple[Any, Any]:
    """An empty chart of so many inches."""
    require("a chart", "matplotlib")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
    return figure, axes


def _legend_above(axes: Any, columns: int) -> None:
    """A legend between title and axes, where it covers nothing."""
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=26)
    axes.legend(
        ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0), borderpad=0, frameon=False
    )


def _spread(figure: Any, labels: Sequence[Any], tries: int = 60) -> None:
    """Move labels up, one line at a time, until none covers another."""
    figure.canvas.draw()
    placed: list[Any] = []
    for label in sorted(labels, key=lambda label: label.xy[1]):
        for _ in range(tries):
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in placed):
                break
            x, y = label.get_position()
            label.set_position((x, y + 4))
        placed.append(label.get_window_extent())


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]

"""Charts show the numbers they are given, and their labels can be read."""

import pytest

from lumosx_rt.reference import charts
from lumosx_rt.reference.charts import Measured

BLUE = (0x2A, 0x7F, 0xB8)


def pixels(image, colour=BLUE) -> list[tuple[int, int]]:
    """Where a picture has a colour."""
    return [
        (x, y)
        for x in range(image.width)
        for y in range(image.height)
        if image.getpixel((x, y)) == colour
    ]


def test_a_curve_is_drawn_where_its_points_are() -> None:
    blue = pixels(charts.curves("t", "x", "y", {"one": [(0.0, 0.0), (10.0, 100.0)]}))
    left, right = min(blue), max(blue)
    assert left[1] > right[1] and right[0] - left[0] > 250  # rises to the right
    for x, y in blue:  # and nowhere else than on the line
        along = (x - left[0]) / (right[0] - left[0])
        assert abs(left[1] + along * (right[1] - left[1]) - y) < 10


def test_a_logarithmic_curve_makes_powers_even() -> None:
    points = [(0.0, 1.0), (1.0, 10.0), (2.0, 100.0)]
    blue = pixels(charts.curves("t", "x", "y", {"one": points}, logarithmic=True))
    left, right = min(blue), max(blue)
    middle = [y for x, y in blue if abs(x - (left[0] + right[0]) / 2) < 2]
    assert abs(sum(middle) / len(middle) - (left[1] + right[1]) / 2) < 10


def test_bars_are_as_long_as_their_values() -> None:
    image = charts.bars("t", "ms", [("a", {"k": 100.0}, "100"), ("b", {"k": 25.0}, "25")])
    rows: dict[int, int] = {}
    for _, y in pixels(image):
        rows[y] = rows.get(y, 0) + 1
    lengths = sorted(set(rows.values()))
    assert lengths[-1] / lengths[0] == pytest.approx(4, rel=0.05)


def test_a_frontier_joins_the_points_that_none_beats() -> None:
    """Half the time at the same rate beats; a worse rate in less time stays on the line."""
    points = [Measured("a", "", 1.0, 0.9, 0.8, 1.0), Measured("b", "", 0.5, 0.9, 0.8, 1.0)]
    points.append(Measured("c", "", 0.25, 0.7, 0.6, 0.8))
    assert charts.unbeaten(points) == [(0.25, 0.7), (0.5, 0.9)]
    better = points[0]._replace(y=0.95)
    assert charts.unbeaten([better, *points[1:]]) == [(0.25, 0.7), (0.5, 0.9), (1.0, 0.95)]
    figure = charts.frontier_figure("t", "x", "y", points)
    drawn = [line for line in figure.axes[0].lines if line.get_color() == charts.GREY]
    assert [list(zip(*line.get_data(), strict=True)) for line in drawn] == [
        [(0.25, 0.7), (0.5, 0.9)]
    ]


def test_labels_do_not_overlap() -> None:
    points = [
        Measured("kind", f"a long label {i}", 1.0 + i / 1000, 0.5, 0.4, 0.6) for i in range(12)
    ]
    figure = charts.frontier_figure("t", "x", "y", points)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 12
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_titles_and_notes_stay_inside_the_picture() -> None:
    rows = [
        (
            "a rather long name of a row",
            {"k": 3.0, "l": 1.0},
            "90 ms, x1.30 (of as released, eager, bf16: x1.22, 1.10 to 1.40)",
        )
    ]
    image = charts.bars("A title that is long enough to matter", "ms", rows)
    edge = [image.getpixel((x, y)) for x in (0, image.width - 1) for y in range(image.height)]
    edge += [image.getpixel((x, y)) for y in (0, image.height - 1) for x in range(image.width)]
    assert set(edge) == {(255, 255, 255)}

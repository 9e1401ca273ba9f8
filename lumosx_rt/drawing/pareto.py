"""A calibration's trade-off as a picture: quality of the velocity over the work in FP8."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.reference.charts import Measured, frontier_figure, image_of


def front_picture(found: Calibration) -> Image.Image:
    """Draw what was measured, what was chosen, and the budget."""
    chosen = found.measured["chosen"]
    front = [p for p in found.measured["front"] if p["share"] > 0] or [chosen]

    def point(kind: str, label: str, entry: dict[str, Any]) -> Measured:
        sqnr: Sequence[float] = entry["sqnr"]  # of every timestep bin
        worst, best = min(sqnr), max(sqnr)
        return Measured(kind, label, 100 * entry["share"], worst, worst, best if label else worst)

    points = [point("measured", "", entry) for entry in front]
    points.append(point("chosen", f"chosen: {100 * chosen['share']:.1f} %", chosen))
    figure = frontier_figure(
        "What runs in FP8, and what it costs",
        "share of the blocks' FLOPs in FP8, %",
        "velocity, dB in the worst timestep bin",
        points,
    )
    (axes,) = figure.axes
    axes.axhline(found.budget, color="#b8cbe6", linewidth=3, zorder=0)
    axes.annotate(f"budget {found.budget:g} dB", (0, found.budget), (4, 4),
                  textcoords="offset points", size=9)  # fmt: skip
    return image_of(figure)

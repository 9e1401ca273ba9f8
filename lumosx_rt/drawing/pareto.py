"""A calibration's front as a picture: quality of the velocity over the work in FP8."""

from PIL import Image, ImageDraw

from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.drawing.typesetting import FAINT, INK, PAPER, font_of

WIDTH, HEIGHT, MARGIN = 960, 540, 72  # pixels
LINE, MARK, BOUND = "#1f4e9c", "#c62828", "#b8cbe6"
TICKS = 5


def front_picture(found: Calibration) -> Image.Image:
    """What was measured (blue), what was chosen (red), and the budget (pale)."""
    chosen = found.measured["chosen"]
    front = [p for p in found.measured["front"] if p["share"] > 0] or [chosen]
    heights = [found.budget, *(min(p["sqnr"]) for p in front)]
    low, high = min(heights) - 1, max(heights) + 1

    def place(share: float, sqnr: float) -> tuple[float, float]:
        up = (min(sqnr, high) - low) / (high - low)
        return MARGIN + share * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(image)
    for i in range(TICKS + 1):
        part = i / TICKS
        sqnr = low + part * (high - low)
        _, y = place(0, sqnr)
        x, _ = place(part, low)
        pen.line([(MARGIN, y), (WIDTH - MARGIN, y)], "#e4e4e4")
        pen.text((MARGIN - 10, y), f"{sqnr:.1f}", FAINT, font_of(13), anchor="rm")
        pen.text((x, HEIGHT - MARGIN + 10), f"{100 * part:.0f} %", FAINT, font_of(13), anchor="ma")
    pen.line([place(0, found.budget), place(1, found.budget)], BOUND, 3)
    places = [place(p["share"], min(p["sqnr"])) for p in front]
    pen.line(places, LINE, 2)
    for x, y in places:
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], LINE)
    x, y = place(chosen["share"], min(chosen["sqnr"]))
    pen.ellipse([x - 7, y - 7, x + 7, y + 7], outline=MARK, width=3)
    title = (
        f"velocity, dB in the worst timestep bin, over the share of block FLOPs in FP8: chosen "
        f"{100 * chosen['share']:.1f} %, budget {found.budget:g} dB"
    )
    pen.text((MARGIN, 24), title, INK, font_of(15))
    return image

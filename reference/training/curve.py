"""The loss of a training run as a picture, from its metrics."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import replacing

WIDTH, HEIGHT, MARGIN = 960, 480, 56  # pixels
GREY, PALE, BLUE = "#777777", "#b8cbe6", "#1f4e9c"


def draw_curve(metrics: str | Path, picture: str | Path) -> None:
    """Draws metrics.jsonl as a PNG: loss (pale) and smoothed loss (blue), logarithmic, over steps.

    A grey line stands where a stage begins. Raises LumosXError if there is nothing to draw.
    """
    lines = [json.loads(line) for line in Path(metrics).read_text("utf-8").splitlines()]
    if len(lines) < 2:
        raise LumosXError(f"'{metrics}' has {len(lines)} lines; a curve needs two")
    steps = [line["step"] for line in lines]
    values = [line[name] for line in lines for name in ("loss", "loss_ema")]
    low, high = math.log(max(min(values), 1e-12)), math.log(max(*values, 1e-12))

    def point(step: float, loss: float) -> tuple[float, float]:
        right = (step - steps[0]) / (steps[-1] - steps[0])
        up = (math.log(max(loss, 1e-12)) - low) / max(high - low, 1e-9)
        return MARGIN + right * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for i in range(5):
        loss = math.exp(low + (high - low) * i / 4)
        _, y = point(steps[0], loss)
        draw.line([(MARGIN, y), (WIDTH - MARGIN, y)], "#e4e4e4")
        draw.text((6, y - 6), f"{loss:.3g}", GREY)
        step = steps[0] + (steps[-1] - steps[0]) * i / 4
        draw.text((point(step, 1)[0] - 12, HEIGHT - MARGIN + 10), f"{step:.0f}", GREY)
    before = None
    for line in lines:
        if line["stage"] != before:
            x, _ = point(line["step"], 1)
            draw.line([(x, MARGIN), (x, HEIGHT - MARGIN)], GREY)
            draw.text((x + 4, MARGIN - 16), line["stage"], GREY)
            before = line["stage"]
    for name, colour, width in (("loss", PALE, 1), ("loss_ema", BLUE, 2)):
        draw.line([point(line["step"], line[name]) for line in lines], colour, width)
    with replacing(Path(picture)) as file:
        image.save(file, format="PNG")

"""A picture of one comparison: reference and engine side by side, what differs, and when."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lumosx_rt.drawing.typesetting import FAINT, INK, PAPER, beside, framed, stack, text_line

Frames = NDArray[np.uint8]
SHOWN = 4  # frames
HEIGHT = 120  # pixels of the curve
LEAST_HEIGHT = 96  # of a frame; smaller ones are enlarged


def comparison_picture(result: dict[str, Any], actual: Frames, expected: Frames) -> Image.Image:
    """result: of `parity.compare`. Frames: uint8 [frames, height, width, 3], engine's, reference's.

    The difference is shown around grey, as many times as the largest one allows.
    """
    chosen = np.linspace(0, len(actual) - 1, min(SHOWN, len(actual))).round().astype(int)
    wide = actual[chosen].astype(int) - expected[chosen].astype(int)
    largest = int(np.abs(wide).max())
    times = max(1, 127 // largest) if largest else 1
    difference = (128 + times * wide).clip(0, 255).astype(np.uint8)
    rows = [
        ("reference", expected[chosen]),
        ("engine", actual[chosen]),
        (f"difference, {times} times; the largest is {largest} of 255", difference),
    ]
    verdict = "passed" if result["passed"] else "FAILED"
    error = result["final_relative_error"]
    title = f"{result['scene']} ({result['layout']}): {verdict}, final latents {error:.1e}"
    parts = [text_line(title, 16), text_line(f"gate {result['gate']:.1e}", 13, FAINT)]
    for label, frames in rows:
        strip = beside([_enlarged(frame) for frame in frames], 6)
        parts.append(stack([text_line(label, 13), strip], 4))
    width = max(part.width for part in parts)
    parts.append(text_line("relative error of the latents after every step", 13))
    parts.append(_curve(result["step_relative_errors"], result["gate"], width))
    return framed(stack(parts, 10))


def _enlarged(frame: Frames) -> Image.Image:
    picture = Image.fromarray(frame)
    times = math.ceil(LEAST_HEIGHT / picture.height)
    return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)


def _curve(errors: Sequence[float], gate: float, width: int) -> Image.Image:
    """On a logarithmic scale, the gate as a line."""
    picture = Image.new("RGB", (width, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    logs = [math.log10(max(e, 1e-12)) for e in (*errors, gate)]
    low, high = math.floor(min(logs)), math.ceil(max(logs) + 0.01)

    def height(value: float) -> float:
        return HEIGHT - 4 - (value - low) / (high - low) * (HEIGHT - 8)

    for power in range(low, high + 1):
        draw.line([(34, height(power)), (width, height(power))], fill="#e3e6ea")
        draw.text((0, height(power) - 6), f"1e{power}", fill=FAINT)
    draw.line([(34, height(logs[-1])), (width, height(logs[-1]))], fill="#d1495b", width=2)
    step = (width - 44) / max(1, len(errors) - 1)
    points = [(38 + i * step, height(value)) for i, value in enumerate(logs[:-1])]
    if len(points) > 1:
        draw.line(points, fill=INK, width=2)
    for x, y in points:
        draw.ellipse([(x - 2, y - 2), (x + 2, y + 2)], fill=INK)
    return picture

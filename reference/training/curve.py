"""The loss of a training run as a picture, from its metrics."""

import json
from pathlib import Path

from lumosx_rt.reference.charts import curves
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import replacing


def draw_curve(metrics: str | Path, picture: str | Path) -> None:
    """Draw metrics.jsonl as a PNG: loss and smoothed loss, logarithmic, over steps.

    A line stands where a stage begins. Raises LumosXError if there is nothing to draw.
    """
    lines = [json.loads(line) for line in Path(metrics).read_text("utf-8").splitlines()]
    if len(lines) < 2:
        raise BadInput(f"'{metrics}' has {len(lines)} lines; a curve needs two")
    series = {
        name: [(line["step"], line[key]) for line in lines]
        for name, key in (("loss", "loss"), ("smoothed", "loss_ema"))
    }
    begins: dict[str, float] = {}
    for line in lines:
        begins.setdefault(line["stage"], line["step"])
    image = curves(
        "Training", "step", "loss", series, logarithmic=True, marks=begins, size=(9.6, 4.8)
    )
    with replacing(Path(picture)) as file:
        image.save(file, format="PNG")

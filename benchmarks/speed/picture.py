"""The side-by-side record as bars."""

from typing import Any

from PIL import Image

from benchmarks.speed.variants import BASELINE
from lumosx_rt.drawing.typesetting import FAINT, framed, stack, text_line
from lumosx_rt.reference.charts import bars


def draw(content: dict[str, Any]) -> Image.Image:
    """A chart for each size: milliseconds by kind of work, and how many times as fast."""
    parts: list[Image.Image] = []
    for name, record in content["sizes"].items():
        machine = record["machine"]
        config = record["config"]
        where = (
            f"{config['num_layers']} blocks of {config['dim']}, {record['tokens']} tokens "
            f"({record['layout']}), seeds: {record['seeds']}; {machine['processor']}, threads: "
            f"{machine['threads']}"
        )
        rows = [
            (row["name"], _parts(row), _note(row)) for row in record["rows"] if "median_ms" in row
        ]
        parts.append(bars(name, "ms for one call of one stream, by kind of work", rows))
        parts.append(text_line(where, 12, FAINT))
        parts += [
            text_line(f"{row['name']}: {row['failed']}", 12, FAINT)
            for row in record["rows"]
            if "failed" in row
        ]
    return framed(stack(parts, 18))


def _parts(row: dict[str, Any]) -> dict[str, float]:
    shares = row.get("shares") or {"not told apart": 1.0}
    return {kind: max(share, 0.0) * row["median_ms"] for kind, share in shares.items()}


def _note(row: dict[str, Any]) -> str:
    ratios, text = row["times_as_fast_as"], f"{row['median_ms']:,.0f} ms"
    if BASELINE in ratios:
        text += f", x{ratios[BASELINE]['ratio']:.2f}"
    own = f"{BASELINE}, {row['precision']}"
    return f"{text} (of {own}: x{ratios[own]['ratio']:.2f})" if own in ratios else text

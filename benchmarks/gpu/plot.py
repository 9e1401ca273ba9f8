"""Pictures of measured rows: docs/gpu-attention.png and docs/gpu-forward.png.

    python -m benchmarks.gpu.plot [benchmarks/results/gpu/rows.jsonl] [--out docs]

Of the environment that was measured last. Needs matplotlib; rehearsed rows are refused.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lumosx_rt.reference.backbones.cost import CEILING_TFLOPS
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout

ROOT = Path(__file__).resolve().parents[2]

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = ROOT / "benchmarks/results/gpu/rows.jsonl"
    parser.add_argument("rows", nargs="?", type=Path, default=default)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    try:
        environment, rows = measured(arguments.rows)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    title = f"{environment['gpu']}, torch {environment['torch']}, triton {environment['triton']}"
    attention(of_stage(rows, "b", "tflops"), title, arguments.out / "gpu-attention.png")
    forward(of_stage(rows, "f", "ms"), title, arguments.out / "gpu-forward.png")
    return 0


def measured(file: Path) -> tuple[Row, list[Row]]:
    """The last environment and its rows. Raises ValueError where anything was rehearsed."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    if any(row.get("rehearsal") for row in rows):
        raise ValueError(f"{file} was rehearsed, not measured; its times mean nothing")
    environments = [row for row in rows if row["stage"] == "environment"]
    if not environments:
        raise ValueError(f"{file} names no environment")
    return environments[-1], [
        row for row in rows if row["environment"] == environments[-1]["environment"]
    ]


def of_stage(rows: list[Row], stage: str, figure: str) -> dict[str, dict[int, Row]]:
    """Name -> number of references -> row; the last row of each counts."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row["stage"] == stage and figure in row:
            references = SceneLayout.from_key(row["shape"]).references
            found.setdefault(row["name"], {})[references] = row
    return found


def attention(ways: dict[str, dict[int, Row]], title: str, file: Path) -> None:
    """TFLOP/s of useful work by implementation and references, under the rooflines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, rows in ways.items():
        counts = sorted(rows)
        axes.plot(counts, [rows[n]["tflops"] for n in counts], marker="o", label=name)
    for kind, ceiling in CEILING_TFLOPS.items():
        axes.axhline(ceiling, color="black", linestyle="--", linewidth=0.8)
        axes.annotate(f"roofline, {kind}", (0, ceiling), va="bottom", fontsize=8)
    axes.set(title=title, xlabel="references", ylabel="useful TFLOP/s", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


def forward(ways: dict[str, dict[int, Row]], title: str, file: Path) -> None:
    """Milliseconds of one forward of the whole model, with what the roofline allows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = sorted({n for rows in ways.values() for n in rows})
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    height = 0.8 / max(1, len(counts))
    for i, references in enumerate(counts):
        rows = [(y, rows[references]) for y, rows in enumerate(ways.values()) if references in rows]
        at = [y + (i - (len(counts) - 1) / 2) * height for y, _ in rows]
        times = [sum(row["ms"]) / 2 for _, row in rows]
        bars = axes.barh(at, times, height, label=f"{references} references")
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
        roofs = [ms * row["roofline_share"] for ms, (_, row) in zip(times, rows, strict=True)]
        axes.scatter(roofs, at, marker="|", color="black", zorder=3)
    axes.set_yticks(range(len(ways)), list(ways))
    axes.invert_yaxis()
    axes.set(title=f"{title}\n(bar marks: roofline)", xlabel="ms for one forward")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    sys.exit(main())

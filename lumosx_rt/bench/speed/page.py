"""What was measured of an engine's speed, as a table for a terminal and as a picture."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from lumosx_rt.drawing.typesetting import ALARM, beside, framed, paragraph, stack
from lumosx_rt.reference.charts import bars, curves

Row = dict[str, Any]
STAGES = ("text", "pictures", "denoising", "decoding")
PAGE_WIDTH = 940


def as_text(summary: Row) -> str:
    """Tables of requests, steps and throughput; a speed-up only of an engine that was verified."""
    rows = summary["rows"]
    parts = [*_heading(summary), "", *_cold(rows.get("cold", {})), ""]
    requests = [(n.partition("/")[2], r) for n, r in rows.items() if n.startswith("request/")]
    names = ("request", "to_first_step", "step", *STAGES)
    head = ["warm, ms (p50 / p95)", *(name for name, _ in requests)]
    table = [[name.replace("_", " "), *(_times(r, name) for _, r in requests)] for name in names]
    parts += [aligned([head, *table]), ""]
    top = rows.get("ceiling", {})
    growth = [
        [name.replace("/", " "), str(row.get("tokens", "")), _times(row, "step"), share(row, top)]
        for name, row in rows.items()
        if name.partition("/")[0] in ("references", "frames", "size")
    ]
    roof = f"of {top['tflops']:.3g} TFLOP/s ({top['dtype']})" if "tflops" in top else ""
    parts += [aligned([["one step", "tokens", "ms (p50 / p95)", roof], *growth]), ""]
    hourly = [
        [name.replace("/", " "), _hourly(row)]
        for name, row in rows.items()
        if name.partition("/")[0] in ("seeds", "together")
    ]
    parts += [aligned([["throughput", "videos an hour"], *hourly]), "", speed_up(summary)]
    return "\n".join(parts)


def share(row: Row, top: Row) -> str:
    """A step's useful work over its time, as a share of the ceiling's."""
    if "flops" not in row or "tflops" not in top:
        return ""
    return f"{row['flops'] / (1e9 * row['ms']['step']['p50'] * top['tflops']):.0%}"


def speed_up(summary: Row) -> str:
    """Return the engine against the reference, or why nothing is said of that."""
    if not summary["verified"]:
        return f"no speed-up: {summary['not_verified_because']}"
    row = summary["rows"].get("speed-up")
    if row is None or "refused" in row:
        reason = "not measured" if row is None else row["refused"]
        return f"no speed-up: {reason}"
    return (
        f"a step is {row['ratio']:.2f} times as fast ({row['low']:.2f}-{row['high']:.2f}) as the "
        f"eager PyTorch reference's, in turns, threads: {row['threads']}; {row['layout']}, "
        f"relative error {row['relative_error']:.1e}"
    )


def draw_page(summary: Row) -> Image.Image:
    """Curves of a step's time, stages of requests, throughput."""
    rows = summary["rows"]
    charts = [
        curves(title, across, "ms a step, p50 and p95", series)
        for title, across, kind, x in (
            ("References", "pictures in the scene", "references", _number),
            ("Length", "frames of the video", "frames", _number),
            ("Size", "tokens of a frame", "size", _frame_tokens),
        )
        if (series := _series(rows, kind, x))
    ]
    hourly = {
        title: [
            (_number(name, row), row["videos_per_hour"])
            for name, row in rows.items()
            if name.startswith(f"{kind}/") and row.get("videos_per_hour")
        ]
        for kind, title in (("seeds", "seeds of a request"), ("together", "requests together"))
    }
    hourly = {title: line for title, line in hourly.items() if line}
    if hourly:
        charts.append(curves("Throughput", "how many", "videos an hour", hourly))
    requests = [
        (name.partition("/")[2], {stage: row["ms"][stage]["p50"] for stage in STAGES}, row)
        for name, row in rows.items()
        if name.startswith("request/") and "ms" in row
    ]
    stages = [
        (name, parts, f"{row['ms']['request']['p50']:,.0f} ms") for name, parts, row in requests
    ]
    lines = [paragraph(line, 15, PAGE_WIDTH) for line in _heading(summary)]
    if not summary["verified"]:
        lines.append(paragraph(speed_up(summary), 15, PAGE_WIDTH, ALARM))
    elif "ratio" in rows.get("speed-up", {}):
        lines.append(paragraph(speed_up(summary), 15, PAGE_WIDTH))
    pairs = [beside(charts[i : i + 2], 40) for i in range(0, len(charts), 2)]
    parts = [stack(lines, 4), *pairs]
    if stages:
        parts.append(bars("A warm request by stage", "ms, median", stages))
    return framed(stack(parts, 28))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _heading(summary: Row) -> list[str]:
    size, machine, settings = summary["size"], summary["machine"], summary["settings"]
    verified = "verified" if summary["verified"] else "NOT VERIFIED"
    where = machine.get("gpu") or f"{machine['processor']}, threads: {machine['threads']}"
    loads = [row["load_average"] for row in summary["rows"].values() if row.get("load_average")]
    load = f", load average {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    return [
        f"{summary['engine']}: {summary['backend']}, {summary['precision']}, {verified}",
        f"{size['frames']} frames of {size['height']}x{size['width']}, {settings['steps']} steps, "
        f"guidance {settings['guidance']:g}; {where}, torch {machine['torch']}, {summary['times']} "
        f"time{load}",
    ]


def _cold(row: Row) -> list[str]:
    if "seconds" not in row:
        return [f"cold: {row.get('refused', 'not measured')}"]
    at = row["seconds"]
    return [
        f"cold, seconds from the start of the process: imported {at['imported']:.2f}, "
        f"loaded {at['loaded']:.2f}, scene encoded {at['prepared']:.2f}, "
        f"first step {at['first_step']:.2f}, video {at['finished']:.2f}",
        f"peak memory of that process: {row['peak_memory_bytes'] / 2**30:.2f} GiB"
        + (
            f", GPU memory in use {row['gpu_memory_in_use_bytes'] / 2**30:.2f} GiB"
            if "gpu_memory_in_use_bytes" in row
            else ""
        ),
    ]


def _times(row: Row, name: str) -> str:
    if "ms" not in row:
        return row.get("refused", "-")
    found = row["ms"][name]
    return f"{found['p50']:.1f} / {found['p95']:.1f}"


def _hourly(row: Row) -> str:
    found = row.get("videos_per_hour")
    return f"{found:,.0f}" if found else row.get("refused", "-")


def _series(rows: Row, kind: str, x: Any) -> dict[str, list[tuple[float, float]]]:
    found = [(n, r) for n, r in rows.items() if n.startswith(f"{kind}/") and "ms" in r]
    return {
        p: [(x(name, row), row["ms"]["step"][p]) for name, row in found]
        for p in (("p50", "p95") if found else ())
    }


def _number(name: str, row: Row) -> float:
    return float(name.partition("/")[2])


def _frame_tokens(name: str, row: Row) -> float:
    height, width = name.partition("/")[2].split("x")
    return int(height) * int(width) / 256

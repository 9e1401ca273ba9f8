"""Write the measured tables of README.md and docs/ from the recorded results.

    python -m benchmarks.tables            rewrite every region
    python -m benchmarks.tables --check    exit with 1 if a region differs from its record

A region stands between `<!-- results: NAME -->` and `<!-- end -->`. A row whose code has changed
since it was measured names the commit of that time.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import quality_tables
from benchmarks.sources import has_changed
from lumosx_rt.bench.speed.page import share
from lumosx_rt.reference.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]

Record = dict[str, Any]
REGION = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BASELINE, WAN = "as released, eager", "Wan2.1 in diffusers, no references"
KINDS = ("linear", "attention", "rounding", "moves", "rest")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    code = 0
    for page in pages(ROOT):
        name, text = page.relative_to(ROOT), page.read_text("utf-8")
        try:
            new = rewritten(text)
        except (OSError, ValueError, KeyError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
        if new == text:
            continue
        if given.check:
            print(f"{name} differs from its records: python -m benchmarks.tables", file=sys.stderr)
            code = 1
        else:
            write_atomically(page, new)
            print(f"{name} rewritten")
    return code


def pages(root: Path) -> list[Path]:
    """README.md and the pages of docs/ that have regions."""
    found = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [page for page in found if "<!-- results: " in page.read_text("utf-8")]


def rewritten(text: str, root: Path = ROOT) -> str:
    """The text with every region as the records have it. Raises ValueError for an unknown name, or
    a region without an end."""
    opened, closed = text.count("<!-- results: "), len(REGION.findall(text))
    if opened != closed:
        raise ValueError(f"{opened} regions of results are opened, {closed} are whole")

    def region(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise ValueError(f"results: '{name}' is not known, only {', '.join(TABLES)}")
        table, *files = TABLES[name]
        records = [json.loads((root / file).read_text("utf-8")) for file in files]
        return f"{match[1]}{table(*records, root)}\n{match[4]}"

    return REGION.sub(region, text)


# -- one function per region --------------------------------------------------------------------


def side_by_side(record: Record, root: Path) -> str:
    """Variants down, sizes across; the largest size, the last one, in more detail."""
    sizes: dict[str, Record] = record["sizes"]
    last = list(sizes)[-1]
    about = []
    for name, size in sizes.items():
        config = size["config"]
        about.append(
            f"- {name}: {config['num_layers']} blocks of {config['dim']}, text of "
            f"{config['text_len']}, `{size['layout']}` ({size['tokens']} tokens), seeds: "
            f"{size['seeds']}; {_where(size['machine'], size['load_average'])}, {size['times']} "
            f"time, {size['rounds']} rounds"
        )
    head = ["ms; times as fast as released", *sizes]
    head += [f"{last}: {more}" for more in ("as released in its precision", "as Wan2.1", "error")]
    head += [f"{last}: where the time goes, %"]
    rows = [head, ["---"] * len(head)]
    found = {n: {row["name"]: row for row in size["rows"]} for n, size in sizes.items()}
    for name in dict.fromkeys(name for by_name in found.values() for name in by_name):
        own = [by_name.get(name) for by_name in found.values()]
        stale = [r["stamp"] for r in own if r is not None and has_changed(r["stamp"], root)]
        row = [marked(name, stale[0], root) if stale else name, *map(_timed, own)]
        rows.append([*row, *_details(own[-1])])
    return "\n".join([*about, "", _markdown(rows)])


def _timed(row: Record | None) -> str:
    if row is None:
        return ""
    if "median_ms" not in row:
        return f"failed: {row['failed']}"
    ratio = _ratio(row["times_as_fast_as"].get(BASELINE))
    return f"{_ms(row['median_ms'])}; {ratio}" if ratio else _ms(row["median_ms"])


def _details(row: Record | None) -> list[str]:
    if row is None or "median_ms" not in row:
        return [""] * 4
    ratios = row["times_as_fast_as"]
    own = ratios.get(f"{BASELINE}, {row['precision']}")
    error = f"{row['relative_error']:.1e}" if row["relative_error"] else "0"
    return [_ratio(own), _ratio(ratios.get(WAN)), error, _shares(row.get("shares"))]


def cpu_engine(record: Record, root: Path) -> str:
    """Layouts down, graphs across."""
    where, rows = record["environment"], record["rows"]
    graphs = list(dict.fromkeys(row["backend"] for row in rows if "refused" not in row))
    table = [["ms; times as fast as eager", *graphs], ["---"] * (1 + len(graphs))]
    for key, seeds in dict.fromkeys((row["layout"], row["seeds"]) for row in rows):
        own = {r["backend"]: r for r in rows if (r["layout"], r["seeds"]) == (key, seeds)}
        name = marked(f"`{key}`, seeds: {seeds}", record.get("stamp"), root)
        table.append([name, *(_of_eager(own[graph]) for graph in graphs)])
    load = where.get("load_average")
    about = f"Threads: {where['threads']}, {record.get('times', 'wall')} time, load average {load}"
    return f"{about}.\n\n{_markdown(table)}"


def _of_eager(row: Record) -> str:
    if "refused" in row:
        return f"refused: {row['refused']}"
    if row["ratio_range"][0] == row["ratio_range"][1] == 1:
        return _ms(row["median_ms"])
    low, high = row["ratio_range"]
    return f"{_ms(row['median_ms'])}; {row['ratio']:.2f} ({low:.2f}-{high:.2f})"


def latency(record: Record, root: Path) -> str:
    """Requests and their stages; growth; throughput; the comparison."""
    rows, size, settings = record["rows"], record["size"], record["settings"]
    loads = [row["load_average"] for row in rows.values() if row["load_average"] is not None]
    cold, fast = rows["cold"], rows.get("speed-up", {})
    requests = {n.partition("/")[2]: r for n, r in rows.items() if n.startswith("request/")}
    head = ["warm, ms (p50 / p95)", *requests]
    table = [head, ["---"] * len(head)]
    for name in ("request", "to_first_step", "step", "text", "pictures", "denoising", "decoding"):
        cells = [_spread(row["ms"][name]) for row in requests.values()]
        table.append([name.replace("_", " "), *cells])
    top = rows.get("ceiling")
    of_top = f" (of {top['tflops']:.3g} TFLOP/s, a large {top['dtype']} product)" if top else ""
    growth = [[f"median of one step, ms{of_top}; videos an hour", ""], ["---"] * 2]
    for kind, title in _GROWTH.items():
        points = {n.partition("/")[2]: r for n, r in rows.items() if n.startswith(f"{kind}/")}
        cells = [f"{x}: {_figure(row, rows.get('ceiling', {}))}" for x, row in points.items()]
        growth.append([title, ", ".join(cells)])
    about = (
        f"{record['engine']} ({record['backend']}, {record['precision']}), {size['frames']} frames "
        f"of {size['height']}x{size['width']}, {settings['steps']} steps, guidance "
        f"{settings['guidance']:g}; {_where(record['machine'], [min(loads), max(loads)])}, "
        f"{record['times']} time"
    )
    at = cold["seconds"]
    first = (
        "Cold, in seconds of the wall from the start of a process: imported "
        f"{at['imported']:.1f}, loaded {at['loaded']:.1f}, scene encoded {at['prepared']:.1f}, "
        f"first step {at['first_step']:.1f}, video {at['finished']:.1f}; peak memory "
        f"{cold['peak_memory_bytes'] / 2**30:.2f} GiB."
    )
    compared = (
        f"A step is {fast['ratio']:.2f} times as fast ({fast['low']:.2f}-{fast['high']:.2f}) as "
        f"the eager reference's."
        if record["verified"] and "ratio" in fast
        else "No speed-up is given: the engine was not verified."
    )
    parts = [marked(about, record["stamp"], root), first, compared]
    return "\n\n".join([*parts, _markdown(table), _markdown(growth)])


def lossy(record: Record, root: Path) -> str:
    """Shortcuts down; what they save, what they do."""
    machine = record["machine"]
    about = (
        f"{record['scenes']} scenes of {record['list']}, {record['steps']} steps; "
        f"{machine['processor']}, threads: {machine['threads']}, {record['times']} time"
    )
    head = ["", "denoising, as fast as exact", "steps with all blocks", "error of final latents"]
    metrics = list(record["rows"][0]["rates"])
    head += [text for metric in metrics for text in (metric, "less exact's")]
    table = [head, ["---"] * len(head)]
    for row in record["rows"]:
        steps = f"{100 * row['whole_steps']:.0f} %" if "whole_steps" in row else "100 %"
        error = f"{row['relative_error']:.1e}" if row["relative_error"] else "0"
        cells = [row["name"], _ratio(row["times_as_fast"]), steps, error]
        for metric in metrics:
            less = row.get("minus exact", {}).get(metric)
            cells.append(f"{row['rates'][metric]['value']:.3f}")
            cells.append("" if less is None else _difference(less))
        table.append(cells)
    return "\n\n".join([marked(about, record["stamp"], root), _markdown(table)])


RESULTS = "benchmarks/results"
TABLES: dict[str, tuple[Any, ...]] = {
    "headline": (
        quality_tables.headline,
        f"{RESULTS}/binding/reference/summary.json",
        f"{RESULTS}/binding/ceiling/summary.json",
        f"{RESULTS}/full_size_build.json",
        f"{RESULTS}/side_by_side.json",
    ),
    "side-by-side": (side_by_side, f"{RESULTS}/side_by_side.json"),
    "cpu-engine": (cpu_engine, f"{RESULTS}/cpu_engine.json"),
    "latency": (latency, f"{RESULTS}/latency.json"),
    "lossy": (lossy, f"{RESULTS}/lossy.json"),
    "binding": (
        quality_tables.binding,
        *(f"{RESULTS}/binding/{run}/summary.json" for run in ("reference", "ceiling", "four")),
    ),
    "ablation": (quality_tables.ablation, f"{RESULTS}/ablation.json"),
    "runtime": (quality_tables.runtime, f"{RESULTS}/runtime.json"),
    "memory": (quality_tables.memory, f"{RESULTS}/runtime.json"),
    "soak": (quality_tables.soak, f"{RESULTS}/soak.json", f"{RESULTS}/hoisting.json"),
    "command-lines": (quality_tables.command_lines, f"{RESULTS}/command_lines.json"),
    "public-api": (quality_tables.public_api, f"{RESULTS}/public_api.json"),
    "kills": (quality_tables.kills, f"{RESULTS}/kills.json"),
    "mutations": (quality_tables.mutations, f"{RESULTS}/mutations.json"),
    "kernels": (quality_tables.kernels, f"{RESULTS}/compile_gate.json"),
    "nullgpu": (quality_tables.nullgpu, f"{RESULTS}/nullgpu.json"),
    "fp8-schemes": (quality_tables.fp8_schemes, "calibration/tiny/calibration.json"),
    "fp8-quality": (quality_tables.fp8_quality, f"{RESULTS}/fp8_quality.json"),
    "full-size": (
        quality_tables.full_size,
        *(f"{RESULTS}/full_size_{name}.json" for name in ("build", "plan", "plan_fp8", "plugin")),
    ),
}
"""Region -> (the function that writes it, its records as paths from the root)."""


_GROWTH = {
    "references": "step by references",
    "frames": "step by frames (4 references)",
    "size": "step by size (4 references)",
    "seeds": "videos an hour by seeds of a request",
    "together": "videos an hour by requests together",
}


def _figure(row: Record, top: Record) -> str:
    if row.get("videos_per_hour"):
        return f"{row['videos_per_hour']:,.0f}"
    if "ms" not in row:
        return "refused"
    of_top = share(row, top)
    return _ms(row["ms"]["step"]["p50"]) + (f" ({of_top})" if of_top else "")


def marked(name: str, stamp: Record | None, root: Path) -> str:
    """A row's name, with the commit it was measured at where its code has changed since."""
    if stamp is not None and not has_changed(stamp, root):
        return name
    return f"{name} (as of {'an unknown commit' if stamp is None else stamp['commit']})"


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _where(machine: Record, load: list[float] | None) -> str:
    busy = "" if load is None else f", load average {load[0]:.1f} to {load[1]:.1f}"
    return f"{machine['processor']}, threads: {machine['threads']}{busy}"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def _difference(found: dict[str, float]) -> str:
    return f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def _spread(found: dict[str, float]) -> str:
    return f"{_ms(found['p50'])} / {_ms(found['p95'])}"


def _shares(shares: dict[str, float] | None) -> str:
    if shares is None:
        return ""
    return ", ".join(f"{kind} {100 * shares[kind]:.0f}" for kind in KINDS if shares[kind] >= 0.005)


if __name__ == "__main__":
    sys.exit(main())

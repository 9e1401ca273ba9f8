"""The README's figures, from the recorded results: what stands between
`<!-- results: NAME -->` and `<!-- end -->` is written by this command.

    python benchmarks/tables.py            rewrites README.md
    python benchmarks/tables.py --check    exit code 1 where it would

A row whose code has changed since it was measured names the commit of that time.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.sources import has_changed  # noqa: E402
from lumosx_rt.files import write_atomically  # noqa: E402

Record = dict[str, Any]
REGION = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
BASELINE, WAN = "as released, eager", "Wan2.1 in diffusers, no references"
KINDS = ("linear", "attention", "rounding", "moves", "rest")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    try:
        new = rewritten(text)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if new == text:
        print("README.md agrees with the records")
        return 0
    if given.check:
        print("README.md disagrees with the records: python benchmarks/tables.py", file=sys.stderr)
        return 1
    write_atomically(readme, new)
    print("README.md rewritten")
    return 0


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
        file, table = TABLES[name]
        record = json.loads((root / "benchmarks" / "results" / file).read_text("utf-8"))
        return f"{match[1]}{table(record, root)}\n{match[4]}"

    return REGION.sub(region, text)


# -- one function per region --------------------------------------------------------------------


def side_by_side(record: Record, root: Path) -> str:
    """A table for each size."""
    parts = []
    for name, size in record["sizes"].items():
        config, machine = size["config"], size["machine"]
        parts.append(
            f"**{name}**: {config['num_layers']} blocks of {config['dim']}, text of "
            f"{config['text_len']}, `{size['layout']}` ({size['tokens']} tokens), seeds: "
            f"{size['seeds']}; {_where(machine, size['load_average'])}, {size['times']} time, "
            f"{size['rounds']} rounds"
        )
        head = ["", "ms", "times as fast as released", "as Wan2.1", "error", "where the time goes"]
        rows = [head, ["---"] * len(head)]
        for row in size["rows"]:
            named = marked(row["name"], row["stamp"], root)
            if "median_ms" not in row:
                rows.append([named, "-", row["failed"], "", "", ""])
                continue
            ratios = row["times_as_fast_as"]
            rows.append(
                [
                    named,
                    _ms(row["median_ms"]),
                    _ratio(ratios.get(BASELINE)),
                    _ratio(ratios.get(WAN)),
                    f"{row['relative_error']:.1e}",
                    _shares(row.get("shares")),
                ]
            )
        parts.append(_markdown(rows))
    return "\n\n".join(parts)


def cpu_engine(record: Record, root: Path) -> str:
    """Layouts down, graphs across."""
    where = record["environment"]
    rows = [["layout, seeds", "graph", "ms", "times as fast as eager", "error"], ["---"] * 5]
    for row in record["rows"]:
        name = marked(f"`{row['layout']}`, {row['seeds']}", record.get("stamp"), root)
        if "refused" in row:
            rows.append([name, row["backend"], "-", f"refused: {row['refused']}", ""])
            continue
        low, high = row["ratio_range"]
        rows.append(
            [
                name,
                row["backend"],
                _ms(row["median_ms"]),
                f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})",
                f"{row['relative_error']:.1e}" if row["relative_error"] else "0",
            ]
        )
    about = f"Threads: {where['threads']}, {record.get('times', 'wall')} time"
    return f"{about}.\n\n{_markdown(rows)}"


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
    growth = [["one step", "ms (p50 / p95)"], ["---"] * 2]
    for name, row in rows.items():
        if name.partition("/")[0] in ("references", "frames", "size"):
            kind, _, value = name.partition("/")
            growth.append([f"{kind} {value}", row.get("refused") or _spread(row["ms"]["step"])])
    hourly = [["videos an hour", ""], ["---"] * 2]
    for name, row in rows.items():
        if name.partition("/")[0] in ("seeds", "together"):
            found = row.get("videos_per_hour")
            hourly.append([name.replace("/", " "), f"{found:,.0f}" if found else row["refused"]])
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
    return "\n\n".join([*parts, *(_markdown(rows) for rows in (table, growth, hourly))])


TABLES: dict[str, tuple[str, Callable[[Record, Path], str]]] = {
    "side-by-side": ("side_by_side.json", side_by_side),
    "cpu-engine": ("cpu_engine.json", cpu_engine),
    "latency": ("latency.json", latency),
}


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


def _spread(found: dict[str, float]) -> str:
    return f"{_ms(found['p50'])} / {_ms(found['p95'])}"


def _shares(shares: dict[str, float] | None) -> str:
    if shares is None:
        return ""
    return ", ".join(f"{kind} {100 * shares[kind]:.0f}" for kind in KINDS if shares[kind] >= 0.005)


if __name__ == "__main__":
    sys.exit(main())

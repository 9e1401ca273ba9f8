"""The speed suite as a whole: an engine's cases measured and kept, a table, a picture.

folder/
  run.json       what was run, where, of which code: another run is refused
  rows.jsonl     a line for each case, with the machine's load then
  summary.json   all of it; whether the engine was verified
  speed.png
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lumosx_rt.artifact.certificate import standing
from lumosx_rt.artifact.manifest import MANIFEST
from lumosx_rt.artifact.source import source_of
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.bench.common.folder import append_line, claim, whole_lines
from lumosx_rt.bench.common.machine import code_digest, machine
from lumosx_rt.bench.speed.cold import cold_request
from lumosx_rt.bench.speed.measure import Extent, Row, Subject, cases, ceiling, measured
from lumosx_rt.bench.speed.page import as_text, draw_page
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import replacing, sha256_of, write_atomically
from lumosx_rt.reference.progress import Progress, Report, quiet
from lumosx_rt.runtime.engine import load
from lumosx_rt.runtime.settings import SAMPLING

ROWS_FILE, SUMMARY_FILE, PAGE_FILE = "rows.jsonl", "summary.json", "speed.png"


def bench_speed(
    path: Path,
    folder: Path,
    *,
    settings: dict[str, Any] | None = None,
    extent: Extent | None = None,
    components: Path | None = None,
    provider: Provider = "auto",
    trust: bool = False,
    processor_time: bool = False,
    report: Report = lambda line: None,
    progress: Progress = quiet,
) -> Row:
    """Times an engine directory; returns the summary.

    settings: steps, shift, guidance; what is None or not there is the engine's default. folder:
    where rows are kept, and found again by the same command. processor_time: of all threads in
    place of the wall's, which with one thread leaves others on the machine out; "cold" is always
    the wall's. Raises LumosXError for what is no engine, and for a folder that holds another run.
    """
    if not (path / MANIFEST).is_file():
        raise BadInput(
            f"{path} is no engine ({MANIFEST}), and speed is an engine's; build one: "
            f"lumosx-rt build {path} -o ENGINE"
        )
    report(f"loading {path}")
    engine = load(
        path,
        components=components,
        provider=provider,
        trust=trust,
        unverified=True,  # what was not compared is said beside its times
        remember=0,
    )
    manifest = engine.manifest
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    chosen = {name: given.get(name, manifest.defaults[name]) for name in SAMPLING}
    clock = time.process_time if processor_time else time.perf_counter
    subject = Subject(engine=engine, settings=chosen, extent=extent or Extent(), clock=clock)
    times = "processor" if processor_time else "wall"
    why_not = not_verified(path)

    def cold() -> Row:
        options: dict[str, Any] = {"components": components, "provider": provider}
        return cold_request(path, trust=trust, settings=chosen, **options)

    def reference() -> LumosX:
        return source_of(manifest, None).load()

    identity = {
        "suite": "speed",
        "engine": sha256_of(path / MANIFEST),
        **engine.backend.describe(),
        "settings": chosen,
        "times": times,
        "extent": asdict(subject.extent),
        "machine": machine(),
        "code": code_digest(),
    }
    claim(folder, identity)
    product = partial(ceiling, subject)
    rows = run(subject, cold, product, None if why_not else reference, folder, progress)
    summary = {
        "suite": "speed",
        "engine": str(path),
        "folder": str(folder),
        "verified": why_not is None,
        "not_verified_because": why_not,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "size": asdict(subject.size),
        "settings": chosen,
        "times": times,
        "machine": identity["machine"],
        "code": identity["code"],
        "engine_sha256": identity["engine"],
        "rows": rows,
    }
    write_atomically(folder / SUMMARY_FILE, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    with replacing(folder / PAGE_FILE) as temporary:
        draw_page(summary).save(temporary, format="PNG")
    return summary


def run(
    subject: Subject,
    cold: Callable[[], Row],
    product: Callable[[], Row],
    reference: Callable[[], LumosX] | None,
    folder: Path,
    progress: Progress = quiet,
) -> dict[str, Row]:
    """Measure what `folder` does not hold yet; return every case's row by its name."""
    found = cases(subject, cold, product, reference)
    known = {}
    for line in whole_lines(folder / ROWS_FILE):
        try:
            row = json.loads(line)
            known[str(row["case"])] = row
        except (ValueError, TypeError, KeyError):
            continue  # measured again
    rows = {}
    progress(found[0][0], 0, len(found))

    def keep(row: Row) -> None:
        append_line(folder / ROWS_FILE, json.dumps(row, allow_nan=False))

    for name, row in measured(found, known, keep):
        rows[name] = row
        progress(name, len(rows), len(found))
    return rows


def not_verified(path: Path) -> str | None:
    """Why an engine's speed is not compared with anything; None for one that passed `verify`."""
    return {
        "passed": None,
        "failed": "the engine FAILED its verification; its times are those of another video",
        "none": f"the engine was not verified; do it with `lumosx-rt verify {path}`",
    }[standing(path)]


def told(summary: Row) -> str:
    """A summary for people."""
    return f"{as_text(summary)}\n\n{summary['folder']}/{PAGE_FILE}"

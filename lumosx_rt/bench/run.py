"""The benchmark as a whole: a list run, its summary, its page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from lumosx_rt.artifact.certificate import certify_binding
from lumosx_rt.artifact.manifest import MANIFEST
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.bench.common.folder import RUN_FILE, held_folder, read_identity
from lumosx_rt.bench.common.makers import Sampling, sampled, vae_alone
from lumosx_rt.bench.quality.page import draw_page
from lumosx_rt.bench.quality.suite import identity_of, read_results, run_suite
from lumosx_rt.bench.quality.table import as_text, compare, summarise
from lumosx_rt.bench.speed.command import bench_speed
from lumosx_rt.bench.speed.command import told as speed_told
from lumosx_rt.bench.speed.measure import QUICK, Extent
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import replacing, write_atomically
from lumosx_rt.reference.kinds import checked
from lumosx_rt.reference.progress import Progress, Report, quiet
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy
from lumosx_rt.reference.version import VERSION
from lumosx_rt.reference.world.scene_lists import BINDING, BINDING_CI, FOUR

SUITES = ("binding", "stills", "vae-ceiling", "speed")
LISTS = {"full": BINDING, "ci": BINDING_CI, "four": FOUR}
SUMMARY_FILE, PAGE_FILE = "summary.json", "page.png"


@checked
def benchmark(
    path: Path,
    folder: Path,
    *,
    suite: str = "binding",
    scene_list: str = "full",
    scenes: int | None = None,
    sampling: Sampling | Mapping[str, Any] | None = None,
    quick: bool = False,
    against: Path | None = None,
    components: Path | None = None,
    provider: Provider = "auto",
    trust: bool = False,
    lossy: Lossy = EXACT,
    report: Report = lambda line: None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Run a suite on an engine directory or a bundle; returns the summary.

    folder: where results are kept, and found again by the same command. scenes: only the first so
    many of the list. sampling: also as {name: value}, None where the suite's own is meant. quick:
    less of "speed" (`speed_command.bench_speed`), which knows no scenes and no `against`. against:
    scenes.jsonl of another run, for paired differences. trust, lossy: as for `load`; speed and the
    VAE know no shortcuts.
    Raises LumosXError for whatever does not fit, before anything slow where it can.
    """
    if suite not in SUITES:
        raise BadInput(f"suite: got '{suite}', accepted are {', '.join(SUITES)}")
    if scene_list not in LISTS:
        raise BadInput(f"list: got '{scene_list}', accepted are {', '.join(LISTS)}")
    given = asdict(sampling) if isinstance(sampling, Sampling) else dict(sampling or {})
    given = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(map(str, set(given) - {one.name for one in fields(Sampling)})):
        raise BadInput(f"sampling: {', '.join(unknown)} not known")
    if quick and suite != "speed":
        raise BadInput(f"quick: only speed can be quick, not {suite}; take --scenes for fewer")
    if lossy and suite not in ("binding", "stills"):
        raise BadInput(f"lossy: shortcuts are judged by binding, not by {suite}; leave them away")
    if suite == "speed":
        if scenes is not None or against is not None:
            raise BadInput("scenes, against: speed is timed without them; leave them away")
        with held_folder(folder):
            return bench_speed(
                path,
                folder,
                settings=given,
                extent=QUICK if quick else Extent(),
                components=components,
                provider=provider,
                trust=trust,
                report=report,
                progress=progress,
            )
    sampling = Sampling(**given)
    if suite == "stills":
        sampling = replace(sampling, frames=1)
    chosen = LISTS[scene_list]
    most = len(chosen.members)
    if scenes is not None and not 1 <= scenes <= most:
        raise BadInput(f"scenes: got {scenes}, '{chosen.name}' has 1 to {most}")
    others = None
    if against is not None:
        others = read_results(against)
        if not others:
            raise BadInput(f"{against}: no results here; give the scenes.jsonl of another run")
    with held_folder(folder):
        report(f"loading {path}")
        maker = (
            vae_alone(path, components)
            if suite == "vae-ceiling"
            else sampled(path, sampling, components, provider, trust, lossy)
        )
        identity = identity_of(suite, chosen, maker.identity | {"lumosx_rt": VERSION})
        if against is not None:
            _check_comparable(identity, against)
        stories = chosen.stories[:scenes]
        results = run_suite(maker.make_clip, stories, folder, identity, progress)
        summary = {"suite": suite, "list": chosen.name, "folder": str(folder)} | summarise(results)
        if others is not None:
            summary["against"] = {"run": str(against)} | compare(results, others)
            if suite == "binding" and (path / MANIFEST).is_file() and not lossy:
                certify_binding(path, chosen.name, summary["against"])
        write_atomically(
            folder / SUMMARY_FILE, json.dumps(summary, indent=2, allow_nan=False) + "\n"
        )
        with replacing(folder / PAGE_FILE) as temporary:
            draw_page(results, stories, folder).save(temporary, format="PNG")
        return summary


def default_folder(
    path: Path, suite: str, scene_list: str, quick: bool = False, lossy: Lossy = EXACT
) -> Path:
    """Name the folder of a run that was given none."""
    last = f"-{scene_list}" if suite != "speed" else "-quick" if quick else ""
    last += f"-keys{lossy.keys_every}" if lossy.reuses_keys else ""
    last += f"-skip{lossy.skip_below:g}" if lossy.skips_blocks else ""
    return Path("out", f"bench-{path.resolve().name}-{suite}{last}")


def told(summary: dict[str, Any]) -> str:
    """A summary for people."""
    if summary["suite"] == "speed":
        return speed_told(summary)
    lines = [
        f"{summary['list']}, {summary['suite']}: {summary['scenes']} scenes, "
        f"{summary['seconds_per_scene']} s each; rates with 95 % intervals",
        as_text(summary),
    ]
    if "against" in summary:
        other = summary["against"]
        lines += [
            "",
            f"differences from {other['run']} on {other['scenes']} common scenes (paired)",
            as_text(other, signed=True),
        ]
    return "\n".join([*lines, "", f"{summary['folder']}/{PAGE_FILE}"])


def _check_comparable(identity: dict[str, Any], against: Path) -> None:
    """Raise LumosXError where the other run was drawn or judged by other code."""
    file = against.parent / RUN_FILE
    if file.is_file() and read_identity(file).get("world") != identity["world"]:
        raise BadInput(
            f"{against}: judged by another version of the drawn world; run it again in a new folder"
        )

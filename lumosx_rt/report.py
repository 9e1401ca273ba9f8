"""report.json and report.md of an engine: what was built, and how close it is."""

import json
import platform
from pathlib import Path
from typing import Any

from lumosx_rt.files import write_atomically
from lumosx_rt.manifest import REPORTS, Manifest


def read_report(folder: Path) -> dict[str, Any]:
    """The sound sections of the engine's last report; none if it has none or it cannot be read."""
    try:
        found = json.loads((folder / REPORTS[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    sound = {}
    for name, render in SECTIONS.items():
        try:
            render(found[name])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            continue
        sound[name] = found[name]
    return sound


def write_report(folder: Path, manifest: Manifest, **sections: dict[str, Any]) -> None:
    """Add or replace sections (`build`, `verify`) of the report, as JSON and to be read."""
    content = read_report(folder) | sections
    facts = environment(manifest)
    lines = [f"# Engine report: {manifest.backend}, {manifest.precision}", ""]
    for name, render in SECTIONS.items():
        if name in content:
            lines += render(content[name])
    lines += ["## Environment", "", *(f"- {name}: {value}" for name, value in facts.items())]
    text = json.dumps(content | {"environment": facts}, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(folder / REPORTS[0], text + "\n")
    write_atomically(folder / REPORTS[1], "\n".join(lines) + "\n")


def environment(manifest: Manifest) -> dict[str, str]:
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "checkpoint": manifest.checkpoint["sha256"],
        **{f"built with {name}": version for name, version in manifest.versions.items()},
    }


def _build_section(build: dict[str, Any]) -> list[str]:
    return [
        "## Build",
        "",
        f"{build['seconds']} s, peak memory {build['peak_memory_bytes'] / 2**30:.1f} GiB, "
        + _compiled(build),
        "",
        *_plan_lines(build.get("layers")),
        "One forward pass against the reference:",
        "",
        "| layout | streams x seeds | relative error |",
        "|---|---|---|",
        *(
            f"| {c['layout']} | {c['streams']} x {c['seeds']} | {c['relative_error']:.1e} |"
            for c in build["parity"]
        ),
        "",
    ]


def _plan_lines(layers: dict[str, Any] | None) -> list[str]:
    if layers is None:
        return []
    fused = [
        f"| {place} | {sum(types.values())} | {', '.join(types)} |"
        for place, types in layers["attention"].items()
    ]
    plugins = layers.get("plugins", {})
    fused += [f"| plugin {name} | {count} | |" for name, count in plugins.items()]
    not_run = (
        "Plan not run: no GPU it was built for. What was compared is the graph that TensorRT was "
        "given, with the plan's weights, in float32; what the plan became is its layer table:"
    )
    return [
        # with plugins, a plan is built and compared where it runs
        "What was compared is the plan itself. Its layers:" if plugins else not_run,
        "",
        f"{sum(layers['kernels'].values())} layers, "
        f"{layers['scratch_bytes'] / 2**30:.2f} GiB of scratch memory at the most.",
        "",
        "| attention | fused kernels | inputs |",
        "|---|---|---|",
        *fused,
        "",
    ]


def _compiled(build: dict[str, Any]) -> str:
    if "compile_seconds" not in build:
        return f"opset {build['opset']}, {sum(build['operators'].values())} operators"
    return f"compiled in {build['compile_seconds']} s for {', '.join(build['device'].values())}"


def _verify_section(check: dict[str, Any]) -> list[str]:
    return [
        f"## Verification: {'passed' if check['passed'] is True else 'FAILED'}",
        "",
        f"{check['steps']} steps, guidance {check['guidance']}, same noise in engine and "
        f"reference; gate {check['gate']:.0e} on the final latents. Two controls are wrong on "
        "purpose and must be caught: words unbound, and all relations between pictures dropped.",
        "",
        "| scene | layout | final latents | worst step | PSNR | finite, not flat | no words "
        "| no relations |",
        "|---|---|---|---|---|---|---|---|",
        *(_scene_row(scene) for scene in check["scenes"]),
        "",
    ]


def _scene_row(scene: dict[str, Any]) -> str:
    def number(value: float | None, none: str) -> str:
        return none if value is None else f"{value:.1e}"

    steps = [error for error in scene["step_relative_errors"] if error is not None]
    psnr = scene["psnr_db"]
    cells = (
        scene["scene"],
        scene["layout"],
        number(scene["final_relative_error"], "none"),
        number(max(steps, default=None), "none"),
        "identical or none" if psnr is None else f"{psnr:.1f} dB",
        "yes" if scene["sound"] else "NO",
        number(scene["words_effect"], "nothing bound"),
        number(scene["control_relative_error"], "nothing related"),
    )
    return f"| {' | '.join(cells)} |"


SECTIONS = {"build": _build_section, "verify": _verify_section}

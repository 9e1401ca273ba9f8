"""report.json and report.md of an engine: what was built, and how close it is."""

import json
import platform
from pathlib import Path
from typing import Any

from lumosx_rt.manifest import REPORTS, Manifest, write_atomically


def read_report(folder: Path) -> dict[str, Any]:
    """The engine's last report; empty if it has none or it cannot be read."""
    try:
        found = json.loads((folder / REPORTS[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_report(folder: Path, manifest: Manifest, **sections: dict[str, Any]) -> None:
    """Add or replace sections (`build`, `verify`) of the report, as JSON and to be read."""
    content = read_report(folder) | {"environment": environment(manifest)} | sections
    write_atomically(folder / REPORTS[0], json.dumps(content, indent=2, sort_keys=True) + "\n")
    write_atomically(folder / REPORTS[1], _as_markdown(manifest, content))


def environment(manifest: Manifest) -> dict[str, str]:
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "checkpoint": manifest.checkpoint["sha256"],
        **{f"built with {name}": version for name, version in manifest.versions.items()},
    }


def _as_markdown(manifest: Manifest, content: dict[str, Any]) -> str:
    lines = [f"# Engine report: {manifest.backend}, {manifest.precision}", ""]
    if build := content.get("build"):
        lines += [
            "## Build",
            "",
            f"{build['seconds']} s, peak memory {build['peak_memory_bytes'] / 2**30:.1f} GiB, "
            f"opset {build['opset']}, {sum(build['operators'].values())} operators",
            "",
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
    if check := content.get("verify"):
        lines += [
            f"## Verification: {'passed' if check['passed'] else 'FAILED'}",
            "",
            f"{check['steps']} steps, guidance {check['guidance']}, same noise in engine and "
            f"reference; gate {check['gate']:.0e} on the final latents. The control drops all "
            "relations between pictures and words: a wrong answer, which the gate must catch.",
            "",
            "| scene | layout | final latents | worst step | PSNR | finite, not flat | control |",
            "|---|---|---|---|---|---|---|",
            *(_scene_row(scene) for scene in check["scenes"]),
            "",
        ]
    lines += ["## Environment", ""]
    lines += [f"- {name}: {value}" for name, value in content["environment"].items()]
    return "\n".join(lines) + "\n"


def _scene_row(scene: dict[str, Any]) -> str:
    control = scene["control_relative_error"]
    psnr = scene["psnr_db"]
    return (
        f"| {scene['scene']} | {scene['layout']} | {scene['final_relative_error']:.1e} "
        f"| {max(scene['step_relative_errors']):.1e} "
        f"| {'identical' if psnr is None else f'{psnr:.1f} dB'} "
        f"| {'yes' if scene['sound'] else 'NO'} "
        f"| {'nothing related' if control is None else f'{control:.1e}'} |"
    )

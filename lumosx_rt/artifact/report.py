"""report.json and report.md of an engine: what was built, and how close it is."""

import json
import math
import platform
from pathlib import Path
from typing import Any

from lumosx_rt.artifact.manifest import REPORTS, Manifest
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import read_json, write_atomically


def read_report(folder: Path) -> dict[str, Any]:
    """Return the sound sections of the engine's last report; none if it has none or it cannot be
    read."""
    try:
        found = read_json(folder / REPORTS[0])
    except LumosXError:
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
    """Add or replace sections (`build`, `verify`, `binding`), as JSON and to be read."""
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
        *_fp8_lines(build.get("fp8")),
        *_plan_lines(build.get("layers")),
        *_bucket_lines(build.get("buckets", {})),
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


def _bucket_lines(buckets: dict[str, Any]) -> list[str]:
    """Return the plans of an engine that has several; the table above is the last one's."""
    if not buckets:
        return []
    return [
        "| references up to | plan, MiB | 8-bit products | 8-bit attention |",
        "|---|---|---|---|",
        *(
            f"| {most} | {plan['bytes'] / 2**20:.1f} | {_products(plan['layers'])} "
            f"| {_attention(plan['layers'])} |"
            for most, plan in buckets.items()
        ),
        "",
    ]


def _products(layers: dict[str, Any]) -> int:
    return int(layers.get("products", {}).get("FP8", 0))


def _attention(layers: dict[str, Any]) -> int:
    return sum(n for types in layers["attention"].values() for t, n in types.items() if "FP8" in t)


def _fp8_lines(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    return [
        f"FP8: {facts['roundings']} roundings to e4m3 exact; {facts['products']} products, each "
        f"given what really came before it, within {facts['worst_product']:.1e} of float64.",
        "",
    ]


def _compiled(build: dict[str, Any]) -> str:
    """Return what was made: a graph, code, or whatever another backend keeps."""
    if "compile_seconds" in build:
        return f"compiled in {build['compile_seconds']} s for {', '.join(build['device'].values())}"
    if "opset" in build:
        return f"opset {build['opset']}, {sum(build['operators'].values())} operators"
    return "nothing compiled"


def _verify_section(check: dict[str, Any]) -> list[str]:
    return [
        f"## Verification: {'passed' if check['passed'] is True else 'FAILED'}",
        "",
        f"{check['steps']} steps, guidance {check['guidance']}, same noise in engine and "
        f"reference; gate {check['gate']:.0e} on the final latents. Two controls are wrong on "
        "purpose and must be caught: words unbound, and all relations between pictures dropped.",
        "",
        "| scene | layout | final latents | worst step | PSNR | SSIM | finite, not flat "
        "| no words | no relations |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_scene_row(scene) for scene in check["scenes"]),
        "",
        *_fp8_check_lines(check),
        *_quirk_lines(check.get("quirks", [])),
    ]


def _quirk_lines(quirks: list[dict[str, Any]]) -> list[str]:
    """Return what would show if the engine had lost a quirk that the weights depend on."""
    if not quirks:
        return []

    def effect(found: dict[str, Any]) -> str:
        if found["effect"] is None:
            return "not shown by this scene"
        told = "told apart" if found["told_apart"] else "too small to be told apart"
        return f"{found['effect']:.1e}, {told}"

    error = quirks[0]["error"]
    return [
        f"Undone one at a time, in one pass (which may err {quirks[0]['allowed']:.1e}, and errs "
        f"{'endlessly' if error is None else f'{error:.1e}'}):",
        "",
        "| quirk | section | effect |",
        "|---|---|---|",
        *(f"| {found['quirk']} | {found['spec']} | {effect(found)} |" for found in quirks),
        "",
    ]


def _fp8_check_lines(check: dict[str, Any]) -> list[str]:
    facts = check.get("fp8")
    if facts is None:
        return []
    lines = [
        f"{facts['quantized']} of {facts['sites']} sites in FP8, calibrated on "
        f"{facts['calibrated_on']}. Signal to noise of the final latents, engine and reference "
        "with FP8 simulated: "
        + "; ".join(
            f"{scene['scene']} {_decibels(scene['final_relative_error'])}, "
            f"{_decibels(scene['rounded_relative_error'])}"
            for scene in check["scenes"]
        )
        + ".",
        "",
    ]
    if "problem" in facts:
        return [*lines, f"NOT what was calibrated: {facts['problem']}", ""]
    return lines + (_fp8_lines(facts) if "roundings" in facts else [])


def _decibels(error: float | None) -> str:
    return "none" if error is None else f"{-20 * math.log10(max(error, 1e-15)):.1f} dB"


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
        "none" if scene["ssim"] is None else f"{scene['ssim']:.5f}",
        "yes" if scene["sound"] else "NO",
        number(scene["words_effect"], "nothing bound"),
        number(scene["control_relative_error"], "nothing related"),
    )
    return f"| {' | '.join(cells)} |"


def _binding_section(found: dict[str, Any]) -> list[str]:
    return [
        "## Binding",
        "",
        f"{found['scenes']} scenes of {found['list']}, less those of {found['against']}, paired, "
        "with 95 % intervals over scenes:",
        "",
        "| rate | difference |",
        "|---|---|",
        *(
            f"| {name} | {one['value']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f}) |"
            for name, one in found["differences"].items()
        ),
        "",
    ]


SECTIONS = {"build": _build_section, "verify": _verify_section, "binding": _binding_section}

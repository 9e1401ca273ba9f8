"""`lumosx-rt calibrate`: a bundle and scenes in, calibration.json and its picture out.

What is done is kept beside OUT in `.NAME.partial`, scene by scene; the same command goes on there,
and its result is bit-equal to that of a run that was never stopped.
"""

import hashlib
import os
from collections.abc import Collection
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from lumosx_rt.artifact.source import CheckpointSource
from lumosx_rt.calibration.calibration_file import Calibration, Site, scales_of
from lumosx_rt.calibration.ledger import Ledger
from lumosx_rt.calibration.observe import Ranges, merged, modelopt_version, observe, weight_amax
from lumosx_rt.calibration.samples import (
    Moment,
    Sampling,
    SceneSet,
    find_scenes,
    moments_of,
    request_of,
    stratified,
)
from lumosx_rt.calibration.scheme import Scheme
from lumosx_rt.calibration.selection import Choice, check_budget, choose
from lumosx_rt.calibration.sensitivity import (
    decibels,
    effects_of,
    energies_of,
    ratios,
    summed,
    velocity_noise,
)
from lumosx_rt.calibration.simulate import Simulation
from lumosx_rt.calibration.sites import flops_of, sites_of, why_not
from lumosx_rt.drawing.pareto import front_picture
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints.bundle import find_bundle
from lumosx_rt.reference.encoders.umt5 import load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import load_vae
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.kinds import checked
from lumosx_rt.reference.numbers import real_number, whole_number
from lumosx_rt.reference.packages import require
from lumosx_rt.reference.places import held, place_of, try_place
from lumosx_rt.reference.progress import Progress, Report, quiet
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.version import VERSION

BUDGET = 20.0  # dB of the velocity in its worst timestep bin
LARGEST = 2**31
SENSITIVE = 6  # scenes that sensitivity is measured on
SCHEMES = (
    Scheme(),
    Scheme(smooth_keys=False),
    Scheme(weights="tensor"),
    Scheme(activations="row"),
)
"""Compared in every calibration, everything in FP8."""


@checked
def calibrate(
    path: str | Path,
    out: Path,
    *,
    scenes: str = "world-v1",
    count: int | None = None,
    steps: int | None = None,
    bins: int = 4,
    budget: float = BUDGET,
    precision: Literal["fp32", "bf16"] = "fp32",
    scheme: Scheme | None = None,
    device: str = "cpu",
    force: bool = False,
    report: Report = lambda line: None,
    progress: Progress = quiet,
) -> Calibration:
    """Calibrate a bundle and writes `out`, and beside it the picture of its front (.png).

    scenes, count: as for `find_scenes`. steps: by default the bundle's own. bins: timestep bins.
    budget: least SQNR of the velocity, dB. precision: that the model is observed in. Raises
    LumosXError for whatever does not fit, before anything slow where it can.
    """
    out = place_of(out)
    if out.suffix != ".json":
        raise BadInput(f"out: got '{out}', a file that ends in .json is needed")
    _check_free(out, force)
    if precision not in ("fp32", "bf16"):
        raise BadInput(f"precision: got '{precision}', accepted are fp32, bf16")
    budget = real_number(budget, "budget", -LARGEST, LARGEST)
    check_budget(budget)
    numbers = {"count": count, "steps": steps, "bins": bins}
    for name, value in numbers.items():  # what they are bounded by says so itself
        if value is not None:
            numbers[name] = whole_number(value, name, -LARGEST, LARGEST)
    require("calibration", "modelopt")
    chosen = find_scenes(scenes, numbers["count"])
    source = CheckpointSource(find_bundle(path))
    defaults = source.defaults
    sampling = Sampling(
        VideoSize(defaults["frames"], defaults["height"], defaults["width"]),
        numbers["steps"] if numbers["steps"] is not None else defaults["steps"],
        float(defaults["shift"]),
        float(defaults["guidance"]),
        numbers["bins"] or 0,
    )
    with held(out, "calibration"):
        _check_free(out, force)
        try_place(out)
        report(f"reading {path}: {len(chosen.scenes)} scenes of {chosen.name}")
        run = Run(
            source, chosen, sampling, scheme or Scheme(), precision, device, out, report, progress
        )
        found = run.document(budget)
        _check_free(out, force)
        found.write(out)
        with replacing(out.with_suffix(".png")) as temporary:
            front_picture(found).save(temporary, format="PNG")
        run.ledger.close()
    return found


def _check_free(out: Path, force: bool) -> None:
    if os.path.lexists(out) and not (force and out.is_file()):
        remedy = "choose another name with -o"
        remedy += "" if force else ", or replace it with --force"
        raise BadInput(f"{out} exists; {remedy}")


class Run:
    """One calibration: what it depends on, and every stage of it, each kept once it is done."""

    def __init__(
        self,
        source: CheckpointSource,
        scenes: SceneSet,
        sampling: Sampling,
        scheme: Scheme,
        precision: str,
        device: str,
        out: Path,
        report: Report,
        progress: Progress,
    ) -> None:
        self.scenes, self.sampling, self.scheme = scenes, sampling, scheme
        self.precision, self.report, self.progress = precision, report, progress
        self.bundle = source.bundle
        self.checkpoint = str(source.identity()["sha256"])
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.model: LumosX = recast(source.load(), dtype, device)
        self.versions = {
            "lumosx-rt": VERSION,
            "torch": torch.__version__,
            "nvidia-modelopt": modelopt_version(),
        }
        identity = {
            "checkpoint": source.hashes,
            "scenes": [scenes.name, scenes.sha256, [scene.name for scene in scenes.scenes]],
            "sampling": asdict(sampling),
            "scheme": asdict(scheme),
            "precision": precision,
            "device": device,
            "versions": self.versions,
        }
        self.ledger = Ledger(out.absolute().with_name(f".{out.name}.partial"), identity)

    def document(self, budget: float) -> Calibration:
        config, size = self.model.config, self.sampling.size
        ranges, weights = self.ranges(), weight_amax(self.model)
        unable = {s: why for s in sites_of(config) if (why := why_not(s, config)) is not None}
        able = [site for site in sites_of(config) if site not in unable]
        scales = {name: scales_of(name, ranges[name], self.scheme) for name in ranges}
        simulation = Simulation(self.model, self.scheme, scales)
        effects = effects_of(self.energies(simulation, able))
        flops = flops_of(config, [example.layout for example in self.sensitive])
        schemes = self.schemes(ranges, able)
        choice = choose(effects, flops, unable, budget, lambda sites: self.noise(simulation, sites))

        def site(name: str) -> Site:
            effect = effects.get(name)
            return Site(
                amax=ranges[name],
                scales=scales[name],
                weight_amax=weights.get(name),
                flops=flops[name],
                sqnr=[decibels(r) for r in effect.site] if effect else [],
                velocity_sqnr=[decibels(r) for r in effect.velocity] if effect else [],
                kept=choice.kept.get(name),
            )

        return Calibration(
            model=asdict(config),
            checkpoint={"sha256": self.checkpoint},
            scenes={
                "name": self.scenes.name,
                "sha256": self.scenes.sha256,
                "prompts": [scene.caption for scene in self.scenes.scenes],
                "sensitivity": [example.name for example in self.sensitive],
            },
            sampling={
                **asdict(size),
                "steps": self.sampling.steps,
                "shift": self.sampling.shift,
                "guidance": self.sampling.guidance,
            },
            bins=self.sampling.binned_times,
            precision=self.precision,
            versions=self.versions,
            scheme=asdict(self.scheme),
            budget=float(budget),
            measured=measured(choice) | {"schemes": schemes},
            sites={name: site(name) for name in sites_of(config)},
        )

    def ranges(self) -> Ranges:
        """Observe all scenes."""
        parts = []
        for i, scene in enumerate(self.scenes.scenes):
            self.progress(f"observing {scene.name}", i, len(self.scenes.scenes))
            parts.append(
                self.ledger.note(
                    f"observed-{i}",
                    lambda i=i: observe(self.model, self.example(i), self.sampling),  # type: ignore[misc]
                )
            )
        self.progress("observed", len(parts), len(parts))
        return merged(parts)

    def energies(self, simulation: Simulation, sites: Collection[str]) -> list[Any]:
        """Measure every site alone in FP8."""
        parts = []
        for i, example in enumerate(self.sensitive):
            self.progress(f"sensitivity on {example.name}", i, len(self.sensitive))
            parts.append(
                self.ledger.note(
                    f"sensitivity-{i}",
                    lambda i=i, example=example: energies_of(  # type: ignore[misc]
                        simulation, example, self.moments[i], self.sampling.guidance, sites
                    ),
                )
            )
        return parts

    def schemes(self, ranges: Ranges, sites: Collection[str]) -> list[dict[str, Any]]:
        """Measure each scheme with everything in FP8."""
        found = []
        for scheme in SCHEMES:
            scales = {name: scales_of(name, ranges[name], scheme) for name in ranges}
            simulation = Simulation(self.model, scheme, scales)
            sqnr = [decibels(ratio) for ratio in self.noise(simulation, sites)]
            found.append(asdict(scheme) | {"velocity_sqnr": sqnr})
        return found

    def noise(self, simulation: Simulation, sites: Collection[str]) -> tuple[float, ...]:
        """Measure noise / signal of the velocity with these sites in FP8."""
        self.progress(f"measuring {len(sites)} sites in FP8", 0, 1)
        key = hashlib.sha256(repr((simulation.scheme, sorted(sites))).encode()).hexdigest()[:16]
        parts = self.ledger.note(
            f"measured-{key}",
            lambda: [
                velocity_noise(simulation, example, moments, self.sampling.guidance, sites)
                for example, moments in zip(self.sensitive, self.moments, strict=True)
            ],
        )
        signal, noise = (summed([part[name] for part in parts]) for name in ("signal", "noise"))
        return ratios(noise, signal)

    @cached_property
    def sensitive(self) -> list[Request]:
        """The scenes that sensitivity is measured on."""
        return [self.example(i) for i in stratified(self.scenes.scenes, SENSITIVE)]

    @cached_property
    def moments(self) -> list[list[Moment]]:
        return [moments_of(self.model, example, self.sampling) for example in self.sensitive]

    def example(self, i: int) -> Request:
        return request_of(
            self.scenes.scenes[i], self.scenes.seeds[i], self.sampling, *self.encoders
        )

    @cached_property
    def encoders(self) -> tuple[Any, Any]:
        text = load_text_encoder(self.bundle, self.model.config.text_len)
        return text, load_vae(self.bundle)


def measured(choice: Choice) -> dict[str, Any]:
    return {
        "chosen": asdict(choice.chosen),
        "front": [asdict(point) for point in choice.front],
    }


def told(found: Calibration, out: Path) -> str:
    """A calibration for people."""
    chosen = found.measured["chosen"]
    kept: dict[str, list[str]] = {}
    for name, site in found.sites.items():
        if site.kept is not None:
            reason = "for the budget" if site.sqnr else "sizes that 8-bit products do not take"
            kept.setdefault(reason, []).append(name)
    lines = [
        f"{len(found.quantized)} of {len(found.sites)} sites in FP8, "
        f"{100 * chosen['share']:.1f} % of the blocks' work; velocity "
        f"{min(chosen['sqnr']):.1f} dB in the worst of {len(found.bins)} timestep bins "
        f"(budget {found.budget:g} dB)",
    ]
    lines += [f"kept, {reason}: {', '.join(names)}" for reason, names in kept.items()]
    lines += [
        f"all in FP8, weights a {s['weights']}, activations a {s['activations']}, keys "
        f"{'smoothed' if s['smooth_keys'] else 'plain'}: {min(s['velocity_sqnr']):.2f} dB"
        for s in found.measured["schemes"]
    ]
    return "\n".join([*lines, str(out)])


def shown(found: Calibration, out: Path) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "calibration": str(out),
        "sites": len(found.sites),
        "quantized": len(found.quantized),
        "budget": found.budget,
        "kept": {name: site.kept for name, site in found.sites.items() if site.kept is not None},
        **found.measured,
    }

"""What each site costs in quality when it alone runs in FP8.

    at the site      |what it gives|^2 / |what it gives in FP8 - that|^2        same operands
    at the velocity  |velocity|^2 / |velocity with this site in FP8 - that|^2   same latents

Latents are those of the unquantized model on its way, so one site's error never feeds another's.
Energies are kept, not ratios: they add over scenes.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.calibration.samples import Moment, velocity_of
from lumosx_rt.calibration.simulate import Simulation
from lumosx_rt.reference.sampling.request import Request

Energies = dict[str, Any]
"""What JSON holds: "signal" [bins], and "sites": site -> "signal", "noise", "velocity" [bins]."""
NOISELESS = 300.0  # dB, said of an error of nothing


@dataclass(frozen=True)
class Effect:
    """One site's, by timestep bin: noise / signal."""

    site: tuple[float, ...]
    velocity: tuple[float, ...]


def energies_of(
    simulation: Simulation,
    request: Request,
    moments: list[Moment],
    guidance: float,
    sites: Collection[str],
) -> Energies:
    """Measure one scene, at one moment of every timestep bin; each site alone in FP8."""
    velocity = velocity_of(simulation.model, request, guidance)
    right = [velocity(moment) for moment in moments]
    found: Energies = {"signal": [energy(x) for x in right], "sites": {}}
    for site in sites:
        probe = _Probe()
        rows = []
        for moment, exact in zip(moments, right, strict=True):
            probe.signal = probe.noise = 0.0
            with simulation.running([site], probe):
                moved = energy(velocity(moment) - exact)
            rows.append((probe.signal, probe.noise, moved))
        names = ("signal", "noise", "velocity")
        found["sites"][site] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return found


class _Probe:
    """Adds up what one site gives, and its error."""

    signal = noise = 0.0

    def __call__(self, site: str, exact: Tensor, quantized: Tensor) -> None:
        self.signal += energy(exact)
        self.noise += energy(quantized - exact)


def effects_of(parts: list[Energies]) -> dict[str, Effect]:
    """Return every site's effect over all scenes."""
    signal = summed([part["signal"] for part in parts])
    effects = {}
    for site in parts[0]["sites"]:
        own, noise, moved = (
            summed([part["sites"][site][name] for part in parts])
            for name in ("signal", "noise", "velocity")
        )
        effects[site] = Effect(ratios(noise, own), ratios(moved, signal))
    return effects


def velocity_noise(
    simulation: Simulation,
    request: Request,
    moments: list[Moment],
    guidance: float,
    sites: Collection[str],
) -> dict[str, list[float]]:
    """Energies of the velocity ("signal") and of its error ("noise") with all `sites` in FP8."""
    velocity = velocity_of(simulation.model, request, guidance)
    right = [velocity(moment) for moment in moments]
    with simulation.running(sites):
        wrong = [velocity(moment) for moment in moments]
    return {
        "signal": [energy(x) for x in right],
        "noise": [energy(y - x) for x, y in zip(right, wrong, strict=True)],
    }


def energy(x: Tensor) -> float:
    return float(x.float().square().sum(dtype=torch.float64))


def summed(rows: list[list[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def ratios(noise: list[float], signal: list[float]) -> tuple[float, ...]:
    return tuple(n / max(s, 1e-300) for n, s in zip(noise, signal, strict=True))


def decibels(ratio: float) -> float:
    """Signal to noise, of noise / signal."""
    return min(-10 * math.log10(ratio), NOISELESS) if ratio > 0 else NOISELESS

"""Noise levels: which sigma and which time every solver step has."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumosx_rt.reference.errors import BadInput

TIMES = 1000


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a sampling.

    sigmas: float32 [steps + 1], falling from 1 to 0. times: int64 [steps], what the network is
    told: as released 1000 * sigma in float64, truncated (docs/spec.md#time-truncation).
    """

    sigmas: NDArray[np.float32]
    times: NDArray[np.int64]

    @classmethod
    def released(cls, steps: int = 50, shift: float = 8.0) -> "Schedule":
        """Make the released levels: evenly spaced, then shifted towards noise."""
        if steps != int(steps) or not 1 <= steps <= TIMES or not 0 < shift < float("inf"):
            raise BadInput(
                f"schedule: needs 1 to {TIMES} steps and shift > 0, got {steps} and {shift}"
            )
        tau = 1.0 - np.arange(steps, dtype=np.float64) / steps
        sigmas = shift * tau / (1.0 + (shift - 1.0) * tau)
        return cls(np.append(sigmas, 0.0).astype(np.float32), (TIMES * sigmas).astype(np.int64))


RELEASED = "released"
SCHEDULES: dict[str, Callable[[int, float], Schedule]] = {RELEASED: Schedule.released}
"""Every schedule by its name: one row each, a function of steps and shift."""


def schedule_of(name: str, steps: int, shift: float) -> Schedule:
    """Make a schedule. Raises LumosXError for an unknown one, or numbers that it does not take."""
    if not isinstance(name, str) or name not in SCHEDULES:
        raise BadInput(f"schedule: got '{name}', accepted are {', '.join(SCHEDULES)}")
    return SCHEDULES[name](steps, shift)

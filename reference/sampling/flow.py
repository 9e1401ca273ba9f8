"""Flow matching: the sampler, guidance and the training objective (SPEC 7 and 9).

sigma runs from 1 (noise) to 0 (video);  x_sigma = (1 - sigma) x0 + sigma noise
the model predicts the velocity  noise - x0
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.errors import LumosXError

TIMES = 1000


@dataclass(frozen=True)
class Schedule:
    """The released noise levels.

    sigmas: float32 [steps + 1], falling from 1 to 0. times: int64 [steps], what the network is
    told: 1000 * sigma in float64, truncated.
    """

    sigmas: NDArray[np.float32]
    times: NDArray[np.int64]

    @classmethod
    def released(cls, steps: int = 50, shift: float = 8.0) -> "Schedule":
        if steps != int(steps) or steps < 1 or not 0 < shift < float("inf"):
            raise LumosXError(f"schedule: needs steps >= 1 and shift > 0, got {steps} and {shift}")
        tau = 1.0 - np.arange(steps, dtype=np.float64) / steps
        sigmas = shift * tau / (1.0 + (shift - 1.0) * tau)
        return cls(np.append(sigmas, 0.0).astype(np.float32), (TIMES * sigmas).astype(np.int64))


@dataclass(frozen=True)
class SamplerState:
    """The state after `step` of `steps` solver steps (0: the noise itself).

    clean: the video that this step's velocity points to (before any step: the noise).
    """

    step: int
    steps: int
    sigma: float
    latents: Tensor
    clean: Tensor


def initial_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one seed, float32: the same on every backend and in any batch."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def guide(conditional: Tensor, null: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance."""
    return null + guidance * (conditional - null)


def sample(
    velocity: Callable[[Tensor, int], Tensor], noise: Tensor, schedule: Schedule
) -> Iterator[SamplerState]:
    """Integrate from noise to video with DPM-Solver++(2M); yields the noise, then every step.

    velocity: (latents, integer time) -> guided velocity, both of noise's shape. diffusers' solver
    runs on the released sigmas and truncated times instead of its own. A consumer that stops
    iterating cancels the rest.
    """
    import diffusers

    steps = len(schedule.times)
    solver: Any = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    solver.set_timesteps(steps)
    solver.sigmas = torch.from_numpy(schedule.sigmas)
    solver.timesteps = torch.from_numpy(schedule.times)
    solver.set_begin_index(0)  # counted, not looked up: truncated times may repeat
    latents = noise.float()
    sigmas = schedule.sigmas.tolist()
    yield SamplerState(0, steps, sigmas[0], latents, latents)
    for step, time in enumerate(schedule.times.tolist()):
        guided = velocity(latents, time).float()
        clean = latents - sigmas[step] * guided
        latents = solver.step(guided, time, latents, return_dict=False)[0]
        yield SamplerState(step + 1, steps, sigmas[step + 1], latents, clean)


def add_noise(x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = (1 - t/1000) x0 + t/1000 noise; time: float [batch], 0..1000, not truncated."""
    s = (time / TIMES).reshape(-1, *[1] * (x0.dim() - 1))
    return (1 - s) * x0 + s * noise


def shift_time(
    time: Tensor,
    *,
    height: int,
    width: int,
    num_frames: int,
    scale: float = 1.0,
    mode: Literal["dynamic", "fixed"] = "dynamic",
) -> Tensor:
    """The optional resolution shift of training times (SPEC 9); sizes in pixels and frames."""
    ratio = scale
    if mode == "dynamic":
        length = 1.0 if num_frames == 1 else (num_frames // 4 + 1) ** 0.5
        ratio = max((height * width / 512**2) ** 0.5, 1.0) * length * scale
    t = time / TIMES
    return ratio * t / (1 + (ratio - 1) * t) * TIMES


def training_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    noise: Tensor,
    time: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Flow-matching loss of each clip over the video frames (SPEC 9).

    model: (x_t, int64 time) -> velocity, at least as many frames as x0 (any more are references).
    x0, noise: [batch, channels, frames, rows, columns]; time: float [batch], 0..1000;
    weights: optional table [1000], looked up at the truncated time. Returns [batch].
    """
    truncated = time.long()
    velocity = model(add_noise(x0, noise, time), truncated)[:, :, : x0.shape[2]]
    loss = (velocity.float() - (noise - x0)).square().flatten(1).mean(1)
    return loss if weights is None else loss * weights[truncated]

"""From noise to video: the solver, one step at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.reference.sampling.schedules import Schedule


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


Edit = Callable[[SamplerState], Tensor]


def sample(
    velocity: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    schedule: Schedule,
    edit: Edit | None = None,
) -> Iterator[SamplerState]:
    """Integrate from noise to video with DPM-Solver++(2M); yields the noise, then every step.

    velocity: (latents, integer time) -> guided velocity, both of noise's shape. diffusers' solver
    runs on the released sigmas and truncated times instead of its own. A consumer that stops
    iterating cancels the rest. edit: shown every state, the noise too; its latents are gone on
    with.
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
    state = SamplerState(0, steps, sigmas[0], latents, latents)
    if edit is not None:
        latents = edit(state).float()
        state = replace(state, latents=latents, clean=latents)
    yield state
    for step, time in enumerate(schedule.times.tolist()):
        guided = velocity(latents, time).float()
        clean = latents - sigmas[step] * guided
        latents = solver.step(guided, time, latents, return_dict=False)[0]
        state = SamplerState(step + 1, steps, sigmas[step + 1], latents, clean)
        if edit is not None:
            latents = edit(state).float()
            state = replace(state, latents=latents)
        yield state

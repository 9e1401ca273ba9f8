"""One request on one backend: noise, guided steps, frames. The same for engine and reference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lumosx_rt.reference.errors import NotFinite
from lumosx_rt.reference.mechanisms.mechanism import Branch
from lumosx_rt.reference.sampling.branches import combined
from lumosx_rt.reference.sampling.inputs import Backend, Inputs
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.solvers import Edit, SamplerState, initial_noise, sample

Locate = Callable[[Inputs, Tensor, int], str]
VERIFY = "Check the engine with `lumosx-rt verify`"


def denoise(
    backend: Backend,
    request: Request,
    head_dim: int,
    *,
    sequential: bool = False,
    locate: Locate | None = None,
) -> Iterator[SamplerState]:
    """Sample a request: yields the noise, then the state after every step.

    States hold latents [seeds, channels, frames, rows, columns]. All branches run as streams of
    one call, or `sequential`ly, for less memory. locate: asked where a step went wrong. Raises
    NotFinite as soon as latents stop being finite.
    """
    together = denoise_together(backend, [request], head_dim, sequential=sequential, locate=locate)
    for (state,) in together:
        if isinstance(state, NotFinite):
            raise state
        yield state


def denoise_together(
    backend: Backend,
    requests: Sequence[Request],
    head_dim: int,
    *,
    sequential: bool = False,
    locate: Locate | None = None,
    edit: Edit | None = None,
) -> Iterator[list[SamplerState | NotFinite]]:
    """Do as `denoise` for requests of one `batch_key`: yields every request's state, step by step.

    edit: as in `sample`; its states hold latents [requests, seeds, ...].

    One whose latents stop being finite has its error in the place of its states from then on, and
    does not touch the others.
    """
    first = requests[0]
    shape = first.latent_shape
    noise = [torch.stack([initial_noise(seed, shape) for seed in r.seeds]) for r in requests]
    velocity = guided_velocity(backend, requests, head_dim, sequential)
    given = torch.stack(noise), 0  # what the last call was given

    def remembering(latents: Tensor, time: int) -> Tensor:
        nonlocal given
        given = latents, time
        return velocity(latents, time)

    errors: dict[int, NotFinite] = {}
    for state in sample(remembering, given[0], first.schedule, edit):
        for i, request in enumerate(requests):
            if i not in errors and not torch.isfinite(state.latents[i]).all():
                (inputs,) = calls_of([request], head_dim)
                latents = given[0][i : i + 1].expand(inputs.shape)
                where = f", {locate(inputs, latents, given[1])}" if locate else ""
                errors[i] = NotFinite(
                    f"'{request.name}': the latents are not finite after step {state.step} of "
                    f"{state.steps}{where}; no video was made. {VERIFY}"
                )
        yield [
            errors.get(i) or replace(state, latents=latents, clean=clean)
            for i, (latents, clean) in enumerate(zip(state.latents, state.clean, strict=True))
        ]


def guided_velocity(
    backend: Backend, requests: Sequence[Request], head_dim: int, sequential: bool = False
) -> Callable[[Tensor, int], Tensor]:
    """Return the velocity of latents [requests, seeds, ...] at a time, all branches put
    together."""
    branches, calls = requests[0].branches, calls_of(requests, head_dim, sequential)
    runs = [(backend.bind(inputs), inputs.shape[0] // len(requests)) for inputs in calls]

    def velocity(latents: Tensor, time: int) -> Tensor:
        streams = [run(torch.cat([latents] * times), time) for run, times in runs]
        return combined(branches, streams if sequential else streams[0].chunk(len(branches)))

    return velocity


def calls_of(requests: Sequence[Request], head_dim: int, sequential: bool = False) -> list[Inputs]:
    """Return what the backend is bound to: a stream for each branch of each request, branch by
    branch.

    sequential: a call for each branch, for less memory.
    """
    first = requests[0]
    layouts = [request.layout for request in requests]
    bindings = [request.binding for request in requests]

    def call(branches: Sequence[Branch]) -> Inputs:
        prompts = [branch.prompt for branch in branches for _ in requests]
        tensors = first.mechanism.inputs(
            layouts * len(branches), bindings * len(branches), prompts, head_dim
        )
        shape = (len(prompts), len(first.seeds), *first.latent_shape)
        return Inputs(tensors, shape, first.mechanism)

    if sequential:
        return [call([branch]) for branch in first.branches]
    return [call(first.branches)]

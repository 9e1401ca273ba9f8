"""One request on one backend: noise, guided steps, frames. The same for engine and reference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lumosx_rt.reference.errors import NotFinite
from lumosx_rt.reference.sampling.flow import guide
from lumosx_rt.reference.sampling.inputs import Backend, Inputs, plain_inputs
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.solvers import SamplerState, initial_noise, sample

Locate = Callable[[Inputs, Tensor, int], str]


def denoise(
    backend: Backend,
    request: Request,
    head_dim: int,
    *,
    sequential: bool = False,
    locate: Locate | None = None,
) -> Iterator[SamplerState]:
    """Sample a request: yields the noise, then the state after every step.

    States hold latents [seeds, channels, frames, rows, columns]. Both guidance branches run as two
    streams of one call, or `sequential`ly, in half the memory; without guidance (1.0) only the
    prompt's runs. locate: asked where a step went wrong. Raises NotFinite as soon as latents stop
    being finite.
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
) -> Iterator[list[SamplerState | NotFinite]]:
    """`denoise` for requests of one `together_key`: yields every request's state, step by step.

    One whose latents stop being finite has its error in the place of its states from then on, and
    does not touch the others.
    """
    first = requests[0]
    channels, rows, columns = first.binding.references.shape[1:]
    shape = (channels, first.layout.video_frames, rows, columns)
    noise = [torch.stack([initial_noise(seed, shape) for seed in r.seeds]) for r in requests]
    velocity = guided_velocity(backend, requests, head_dim, sequential)
    given = torch.stack(noise), 0  # what the last call was given

    def remembering(latents: Tensor, time: int) -> Tensor:
        nonlocal given
        given = latents, time
        return velocity(latents, time)

    errors: dict[int, NotFinite] = {}
    for state in sample(remembering, given[0], first.schedule):
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
    """The velocity of latents [requests, seeds, ...] at a time, both branches put together."""
    calls = calls_of(requests, head_dim, sequential)
    runs = [(backend.bind(inputs), inputs.shape[0] // len(requests)) for inputs in calls]
    guidance = requests[0].guidance

    def velocity(latents: Tensor, time: int) -> Tensor:
        streams = [run(torch.cat([latents] * times), time) for run, times in runs]
        if guidance == 1.0:
            return streams[0]
        conditional, null = streams if sequential else streams[0].chunk(2)
        return guide(conditional, null, guidance)

    return velocity


def calls_of(requests: Sequence[Request], head_dim: int, sequential: bool = False) -> list[Inputs]:
    """What the backend is bound to: a stream for each branch of each request, prompts first.

    The null branch keeps the references and the word template (docs/spec.md#guidance). sequential:
    a call for each branch.
    """
    layouts, seeds = [request.layout for request in requests], len(requests[0].seeds)
    prompts = [request.binding for request in requests]
    if requests[0].guidance == 1.0:
        return [plain_inputs(layouts, prompts, seeds, head_dim)]
    nulls = [replace(binding, text=binding.null_text) for binding in prompts]
    if sequential:
        return [plain_inputs(layouts, branch, seeds, head_dim) for branch in (prompts, nulls)]
    return [plain_inputs(layouts * 2, prompts + nulls, seeds, head_dim)]


VERIFY = "Check the engine with `lumosx-rt verify`"

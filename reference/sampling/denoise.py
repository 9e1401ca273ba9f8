"""One request on one backend: noise, guided steps, frames. The same for engine and reference."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.encoders.umt5 import VideoAutoencoder
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.binding import Binding, VideoSize
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.flow import SamplerState, Schedule, guide, initial_noise, sample
from lumosx_rt.reference.sampling.inputs import Backend, Inputs, plain_inputs
from lumosx_rt.runtime.guards import VERIFY, Flat, NotFinite, is_flat, latents_are_flat

__all__ = ["Request", "Video", "decode", "denoise", "denoise_together", "is_flat"]

Locate = Callable[[Inputs, Tensor, int], str]


@dataclass(frozen=True)
class Video:
    """A finished video: frames uint8 [frames, height, width, 3]."""

    name: str
    frames: NDArray[np.uint8]
    fps: int
    seed: int

    def save(self, path: str | Path) -> Path:
        """Write it as an H.264 mp4."""
        from lumosx_rt.reference.scenes.clips import write_clip

        write_clip(Path(path), self.frames, fps=self.fps)
        return Path(path)


@dataclass(frozen=True)
class Request:
    """A scene, bound and ready to sample."""

    name: str
    size: VideoSize
    layout: SceneLayout
    binding: Binding
    seeds: tuple[int, ...]
    steps: int
    shift: float
    guidance: float

    def __post_init__(self) -> None:
        check_sampling(self.seeds, self.steps, self.shift, self.guidance)
        if len(self.seeds) > 1 and not self.layout.relational_visibility:
            raise LumosXError(
                f"layout {self.layout.key}: references see the video here, so seeds cannot share "
                "them; sample one seed at a time"
            )

    @property
    def schedule(self) -> Schedule:
        return Schedule.released(self.steps, self.shift)

    @property
    def together_key(self) -> tuple[object, ...]:
        """Requests with equal keys can go through the backend together."""
        layout = self.layout
        grid = (layout.video_frames, layout.height, layout.width)
        return (
            *(self.size.latent, grid, layout.references, layout.raster_tiling),
            *(len(self.seeds), self.steps, self.shift, self.guidance),
        )

    def without_words(self) -> "Request":
        """The same request with every picture bound to no word."""
        template = torch.zeros_like(self.binding.template)
        return replace(self, binding=replace(self.binding, template=template))

    def unrelated(self) -> "Request":
        """The same pictures without relations: each alone, bound to no word. A wrong answer."""
        layout = replace(self.layout, lone=self.layout.references, subjects=())
        return replace(self.without_words(), layout=layout)


def check_sampling(seeds: Sequence[int], steps: int, shift: float, guidance: float) -> None:
    """Raises LumosXError for settings that cannot be sampled."""
    if not seeds or len(set(seeds)) != len(seeds) or not all(0 <= s < 1 << 63 for s in seeds):
        raise LumosXError(
            f"seeds: needs at least one, all different, 0 to 2^63 - 1, got {tuple(seeds)}"
        )
    if not math.isfinite(guidance):
        raise LumosXError(f"guidance: needs a finite number, got {guidance}")
    Schedule.released(steps, shift)


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

    The null branch keeps the references and the word template (SPEC 7). sequential: a call for
    each branch.
    """
    layouts, seeds = [request.layout for request in requests], len(requests[0].seeds)
    prompts = [request.binding for request in requests]
    if requests[0].guidance == 1.0:
        return [plain_inputs(layouts, prompts, seeds, head_dim)]
    nulls = [replace(binding, text=binding.null_text) for binding in prompts]
    if sequential:
        return [plain_inputs(layouts, branch, seeds, head_dim) for branch in (prompts, nulls)]
    return [plain_inputs(layouts * 2, prompts + nulls, seeds, head_dim)]


def decode(
    vae: VideoAutoencoder,
    request: Request,
    latents: Tensor,
    fps: int,
    tile: tuple[int, int] | None = None,
) -> list[Video]:
    """Latents [seeds, ...] to one video per seed.

    tile: (rows, columns) of latents that are decoded at a time, for less memory. Raises NotFinite,
    and Flat for a video of one colour.
    """
    videos = []
    for seed, clip in zip(request.seeds, latents, strict=True):
        name = f"'{request.name}', seed {seed}"
        if not torch.isfinite(clip).all():
            raise NotFinite(f"{name}: the latents to decode are not finite; no video was made")
        if latents_are_flat(clip):
            raise Flat(
                f"{name}: the latents after the last step are flat (the same everywhere); no video "
                f"was made. {VERIFY}"
            )
        options = {} if tile is None else {"tile": tile}
        try:
            frames = vae.decode_frames_uint8(clip[None], **options)
        except LumosXError as error:
            raise NotFinite(f"{name}: {error}") from None
        if is_flat(frames):
            raise Flat(f"{name}: the video is flat (one colour); it was not kept. {VERIFY}")
        videos.append(Video(request.name, frames, fps, seed))
    return videos


def peak_memory_bytes() -> int:
    """Most memory this process has held so far."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def relative_error(actual: Tensor | Sequence[float], expected: Tensor) -> float:
    """|actual - expected| / |expected|, in the 2-norm and float64."""
    difference = torch.as_tensor(actual).double() - expected.double()
    return float(difference.norm() / expected.double().norm().clamp_min(1e-30))

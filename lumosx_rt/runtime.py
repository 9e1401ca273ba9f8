"""One request on one backend: noise, guided steps, frames. The same for engine and reference."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.backends import Backend, guided_inputs, plain_inputs
from lumosx_rt.reference.binding import Binding, VideoSize
from lumosx_rt.reference.encoders import VideoAutoencoder
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.flow import SamplerState, Schedule, guide, initial_noise, sample
from lumosx_rt.reference.layout import SceneLayout

FLAT = 0.5  # standard deviation in 8-bit levels below which a video shows nothing


@dataclass(frozen=True)
class Video:
    """A finished video: frames uint8 [frames, height, width, 3]."""

    name: str
    frames: NDArray[np.uint8]
    fps: int
    seed: int

    def save(self, path: str | Path) -> Path:
        """Write it as an H.264 mp4."""
        from lumosx_rt.reference.clip import write_clip

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


def denoise(backend: Backend, request: Request, head_dim: int) -> Iterator[SamplerState]:
    """Sample a request: yields the noise, then the state after every step.

    States hold latents [seeds, channels, frames, rows, columns]. Both guidance branches run as two
    streams of one call; without guidance (1.0) only the prompt's runs. Raises LumosXError as soon
    as latents stop being finite.
    """
    channels, rows, columns = request.binding.references.shape[1:]
    shape = (channels, request.layout.video_frames, rows, columns)
    noise = torch.stack([initial_noise(seed, shape) for seed in request.seeds])
    layout, binding, seeds = request.layout, request.binding, len(request.seeds)
    guided = request.guidance != 1.0
    run = backend.bind(
        guided_inputs(layout, binding, seeds, head_dim)
        if guided
        else plain_inputs([layout], [binding], seeds, head_dim)
    )

    def velocity(latents: Tensor, time: int) -> Tensor:
        streams = run(latents.expand(2 if guided else 1, *latents.shape), time)
        return guide(streams[0], streams[1], request.guidance) if guided else streams[0]

    for state in sample(velocity, noise, request.schedule):
        if not torch.isfinite(state.latents).all():
            raise LumosXError(
                f"'{request.name}': the latents are not finite after step {state.step} of "
                f"{state.steps}; no video was made. Check the engine with `lumosx-rt verify`"
            )
        yield state


def decode(vae: VideoAutoencoder, request: Request, latents: Tensor, fps: int) -> list[Video]:
    """Latents [seeds, ...] to one video per seed. Raises LumosXError for a flat one."""
    videos = []
    for seed, clip in zip(request.seeds, latents, strict=True):
        frames = vae.decode_frames_uint8(clip[None])
        if is_flat(frames):
            raise LumosXError(
                f"'{request.name}', seed {seed}: the video is flat (one colour); it was not kept. "
                "Check the engine with `lumosx-rt verify`"
            )
        videos.append(Video(request.name, frames, fps, seed))
    return videos


def is_flat(frames: NDArray[np.uint8]) -> bool:
    """Whether frames uint8 [frames, height, width, 3] show one colour, whichever."""
    return bool(frames.reshape(-1, frames.shape[-1]).std(axis=0).max() < FLAT)


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

"""A request as events: what a caller shows while a video arises, and the video."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.sampling.solvers import SamplerState
from lumosx_rt.runtime.video import Video


@dataclass(frozen=True)
class Event:
    """After `step` of `steps`; the last event has the videos.

    preview: uint8 [seeds, height, width, 3], the first frame of the video that the step's velocity
    points to, decoded by the VAE.
    """

    step: int
    steps: int
    sigma: float
    preview: NDArray[np.uint8] | None = None
    videos: list[Video] | None = None


def preview_of(vae: VideoAutoencoder, clean: Tensor) -> NDArray[np.uint8]:
    """Return the first frame of latents [seeds, channels, frames, rows, columns].

    The VAE is causal: the first latent frame alone decodes to the first frame of the whole, for the
    price of one of 1 + 4k frames.
    """
    return np.concatenate([vae.decode_frames_uint8(clip[None, :, :1]) for clip in clean])


@contextmanager
def shown(
    progress: Callable[[SamplerState], None] | bool, name: str
) -> Iterator[Callable[[SamplerState], None]]:
    """Yield what is shown the state after every step: `progress`, or a bar if it is True."""
    if callable(progress):
        yield progress
    elif not isinstance(progress, bool):
        raise BadInput(f"progress: got {progress!r:.60}, accepted are a function, or True")
    elif not progress:
        yield lambda state: None
    else:
        from rich.progress import Progress

        with Progress() as bars:
            task = bars.add_task(name, total=None)
            yield lambda state: bars.update(task, completed=state.step, total=state.steps)

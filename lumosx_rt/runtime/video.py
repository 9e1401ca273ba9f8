"""A finished video, and how latents become one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import Flat, LumosXError, NotFinite
from lumosx_rt.reference.sampling.denoise import VERIFY
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.runtime.guards import is_flat, latents_are_flat


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

"""A finished video, and how latents become one."""

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import Flat, LumosXError, NotFinite
from lumosx_rt.reference.kinds import checked
from lumosx_rt.reference.sampling.denoise import VERIFY
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.scenes.clips import save_video
from lumosx_rt.runtime.guards import is_flat, latents_are_flat


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A finished video. Two are equal if their frames, rate, name and seed are."""

    name: str
    frames: NDArray[np.uint8]
    """uint8 [frames, height, width, 3]."""
    fps: int
    seed: int
    warnings: tuple[str, ...] = ()
    """What is odd about its scene, and what of its texts was not read."""

    def __repr__(self) -> str:
        frames, height, width = self.frames.shape[:3]
        size = f"{frames} frames of {width} x {height} at {self.fps} a second"
        return f"Video {self.name!r}: {size}, seed {self.seed}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Video):
            return NotImplemented
        about = (self.name, self.fps, self.seed) == (other.name, other.fps, other.seed)
        return about and np.array_equal(self.frames, other.frames)

    def __hash__(self) -> int:
        return hash((self.name, self.fps, self.seed, self.frames.shape))

    def __len__(self) -> int:
        return len(self.frames)

    def numpy(self) -> NDArray[np.uint8]:
        """Return a copy of its frames, uint8 [frames, height, width, 3]."""
        return self.frames.copy()

    def torch(self) -> Tensor:
        """Return its frames as torchvision has them, uint8 [frames, 3, height, width]."""
        return torch.from_numpy(self.frames.copy()).permute(0, 3, 1, 2).contiguous()

    def pil(self) -> list[Image.Image]:
        """Return its frames as PIL images."""
        return [Image.fromarray(frame) for frame in self.frames.copy()]

    @checked
    def save(self, path: str | Path) -> Path:
        """Write it in the format of the suffix and return the path.

        .mp4 is H.264 as released; .gif and .webp are animations; .png is one picture a frame,
        NAME-0000.png and so on, of which the first one's path is returned. A file is replaced only
        when the new one is whole. Raises LumosXError for any other suffix, and where it cannot be
        written.
        """
        return save_video(self.frames, self.fps, Path(path))

    def _repr_html_(self) -> str:
        """Show it in a notebook, playing."""
        with TemporaryDirectory() as folder:
            data = self.save(Path(folder) / "video.mp4").read_bytes()
        encoded = base64.b64encode(data).decode("ascii")
        return (
            f'<video controls loop autoplay muted title="{html.escape(repr(self), quote=True)}" '
            f'src="data:video/mp4;base64,{encoded}"></video>'
        )


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
        videos.append(Video(request.name, frames, fps, seed, request.warnings))
    return videos

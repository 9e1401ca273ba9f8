"""Pixels to latents and back: what LumosX does around diffusers' AutoencoderKLWan
(docs/spec.md#vae)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.checkpoints.bundle import Bundle, find_bundle
from lumosx_rt.reference.encoders import tiled_decode as decode
from lumosx_rt.reference.encoders.single_frame import planar
from lumosx_rt.reference.encoders.weights import (
    load_autoencoder,
)
from lumosx_rt.reference.errors import BadInput, NotFinite
from lumosx_rt.reference.process import OfItsProcess, check_process

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


CLIP_FRAMES = 4  # pixel frames the encoder takes at a time, after the first one


Tile = tuple[int, int]


class VideoAutoencoder(OfItsProcess):
    """Pixels in [-1, 1] to normalised latents and back (docs/spec.md#vae).

    It works where its weights are: what it is given is moved there, in pieces, and what it returns
    is where the input was.
    """

    def __init__(self, model: "AutoencoderKLWan") -> None:
        self.model, self._pid = cast(Any, model), os.getpid()
        config = self.model.config
        if config.is_residual or config.patch_size is not None:
            raise BadInput("VAE: this is a Wan2.2 VAE; LumosX uses the one of Wan2.1")
        if config.z_dim != len(config.latents_mean) or config.z_dim != len(config.latents_std):
            raise BadInput(
                f"VAE: {config.z_dim} latent channels, but {len(config.latents_mean)} means and "
                f"{len(config.latents_std)} standard deviations; give latents_mean and latents_std"
            )
        self.time_factor, self.space_factor = decode.scale(self.model.decoder)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Clips to normalised latents: the posterior's mean, (mean - mu) / sigma, float32.

        pixels: [clips, 3, frames, height, width] in [-1, 1], frames = 1 + 4k. Rows and columns
        beyond a multiple of 8 do not reach the latents.
        Returns [clips, 16, 1 + k, height // 8, width // 8].
        """
        check_process(self._pid, "the VAE")
        channels, frames, height, width = pixels.shape[1:]
        if channels != self.model.config.in_channels or min(height, width) < self.space_factor:
            raise BadInput(
                f"VAE: pixels must be [clips, {self.model.config.in_channels}, frames, height, "
                f"width] of at least {self.space_factor} pixels, got {list(pixels.shape)}"
            )
        if (frames - 1) % CLIP_FRAMES:
            raise BadInput(f"VAE: a clip has 1 + {CLIP_FRAMES}k frames, got {frames}")
        mean, std = self._statistics(self.device)
        means = [
            self.model.encode(clip[None].to(self.device, self.model.dtype)).latent_dist.mode()
            for clip in pixels
        ]
        return ((torch.cat(means).float() - mean) / std).to(pixels.device)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images to latents, each as a clip of one frame (docs/spec.md#vae).

        images: [images, 3, height, width], uint8, or floating point in [-1, 1].
        Returns [images, 16, 1, height // 8, width // 8].
        """
        if images.dtype == torch.uint8:
            images = images.float() / 255 * 2 - 1
        with planar(self.model):
            return self.encode(images[:, :, None])

    @torch.no_grad()
    def decode(self, latents: Tensor, tile: Tile | None = None) -> Tensor:
        """Latents to pixels in [-1, 1], float32 [clips, 3, 1 + 4k, 8 * rows, 8 * columns].

        latents: [clips, 16, 1 + k, rows, columns], normalised. tile: (rows, columns) in latent
        cells, for less memory and the same pixels.
        """
        pixels = latents.new_empty(self._pixels_of(latents), dtype=torch.float32)
        for piece in decode.pieces(self.model, self._denormalised(latents), tile):
            pixels[:, :, *piece[:3]] = piece.pixels.float().clamp(-1, 1).to(pixels.device)
        return pixels

    @torch.no_grad()
    def decode_chunks(self, latents: Tensor, tile: Tile | None = None) -> Iterator[Tensor]:
        """Do as `decode` in pieces of time: yields [clips, 3, 1 or 4, height, width] as they are
        made."""
        for pixels in decode.chunks(self.model, self._denormalised(latents), tile):
            yield pixels.float().clamp(-1, 1).to(latents.device)

    @torch.no_grad()
    def decode_frames_uint8(self, latents: Tensor, tile: Tile | None = None) -> NDArray[np.uint8]:
        """Return one clip as frames of a file: uint8 [frames, height, width, 3], truncated
        (docs/spec.md#precision).

        latents: [16, 1 + k, rows, columns], or the same with one clip in front. Raises LumosXError
        if a pixel is not a finite number.
        """
        clip = latents if latents.dim() == 5 else latents[None]
        channels, frames, height, width = self._pixels_of(clip)[1:]
        out = np.empty((frames, height, width, channels), np.uint8)
        for piece in decode.pieces(self.model, self._denormalised(clip), tile):
            if not torch.isfinite(piece.pixels).all():
                raise NotFinite("VAE: decoded pixels are not finite; the latents are no video")
            values = (piece.pixels[0].float().clamp(-1, 1) + 1) / 2 * 255
            out[piece[:3]] = values.permute(1, 2, 3, 0).to(torch.uint8).cpu().numpy()
        return out

    def _pixels_of(self, latents: Tensor) -> tuple[int, int, int, int, int]:
        """Return the shape of the pixels that latents decode to. Every decoding asks."""
        check_process(self._pid, "the VAE")
        if latents.dim() != 5 or latents.shape[1] != self.model.config.z_dim:
            raise BadInput(
                f"VAE: latents must be [clips, {self.model.config.z_dim}, frames, rows, columns], "
                f"got {list(latents.shape)}"
            )
        clips, _, frames, rows, columns = latents.shape
        space = self.space_factor
        frames = 1 + (frames - 1) * self.time_factor
        return clips, int(self.model.config.out_channels), frames, rows * space, columns * space

    def _denormalised(self, latents: Tensor) -> Tensor:
        self._pixels_of(latents)
        mean, std = self._statistics(self.device)
        return (latents.to(self.device, torch.float32) * std + mean).to(self.model.dtype)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        config = self.model.config
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std


def load_vae(
    source: Bundle | str | Path,
    dtype: torch.dtype | None = torch.float32,
    released_precision: bool = False,
    device: torch.device | str = "cpu",
) -> VideoAutoencoder:
    """Return the VAE of a bundle, in any layout (docs/spec.md#checkpoints).

    released_precision: weights rounded to bfloat16, arithmetic in float32 (docs/spec.md#precision).
    device: where its weights are read to. Raises LumosXError if it is missing, damaged or foreign.
    """
    bundle = source if isinstance(source, Bundle) else find_bundle(source)
    model: Any = load_autoencoder(bundle.require("vae"), dtype, device)
    if released_precision:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    return VideoAutoencoder(model)

"""Whether a GPU may decode in bfloat16, decided by decoding the same latents in both formats.

The latents are noise, the same for everybody: what a VAE is decoded in does not depend on what is
asked of it first. On a CPU nothing is gained, and it stays float32.
"""

from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.metrics import peak_signal_to_noise

LEAST_DB = 45.0  # of frames against float32's; a video file of the default quality has less
FAR = 4  # levels of 255
MOST_FAR = 1e-3  # of all values, that may be further away
_TRIED = (2, 30, 52)  # latent frames, rows, columns: two chunks of time of 480p's width


class Verdict(NamedTuple):
    """How bfloat16 compares. db: None where frames are equal. far: share of values beyond FAR."""

    db: float | None
    far: float
    finite: bool = True

    @property
    def passes(self) -> bool:
        near = self.db is None or self.db >= LEAST_DB
        return self.finite and near and self.far <= MOST_FAR

    def __str__(self) -> str:
        if not self.finite:
            return "fp32: bf16 decodes to no finite numbers"
        shown = "equal frames" if self.db is None else f"{self.db:.1f} dB"
        figures = f"{shown}, {self.far:.2%} of values over {FAR} levels away"
        return f"bf16: {figures}" if self.passes else f"fp32: bf16 has {figures}"


def judged(exact: NDArray[np.uint8], rounded: NDArray[np.uint8]) -> Verdict:
    """Compare frames uint8 of the same shape."""
    apart = np.abs(exact.astype(np.int16) - rounded.astype(np.int16))
    return Verdict(peak_signal_to_noise(rounded, exact), float((apart > FAR).mean()))


def in_bfloat16(vae: VideoAutoencoder) -> tuple[VideoAutoencoder | None, Verdict]:
    """Return the VAE to decode with in bfloat16, or None where it differs too much; and why."""
    frames, rows, columns = _TRIED
    draw = torch.Generator("cpu").manual_seed(0)
    latents = torch.randn(1, vae.model.config.z_dim, frames, rows, columns, generator=draw)
    # the library's own `to` warns of models of which some must stay in float32
    tried = VideoAutoencoder(nn.Module.to(deepcopy(vae.model), torch.bfloat16))
    exact = vae.decode_frames_uint8(latents)
    try:
        verdict = judged(exact, tried.decode_frames_uint8(latents))
    except LumosXError:  # it names numbers that are not finite
        verdict = Verdict(None, 0.0, finite=False)
    return (tried if verdict.passes else None), verdict

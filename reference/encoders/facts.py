"""What must be known of encoders before they are loaded: their sizes, read from file headers."""

from typing import Any, NamedTuple

import torch

from lumosx_rt.reference.checkpoints.bundle import Bundle
from lumosx_rt.reference.checkpoints.sizes import vae_sizes
from lumosx_rt.reference.encoders.tiled_decode import halo
from lumosx_rt.reference.encoders.weights import autoencoder_state

FLOAT_BYTES = 4


class EncoderFacts(NamedTuple):
    """Sizes that a plan of memory needs."""

    text_encoder_bytes: int
    vae_bytes: int
    """In float32, as it is loaded."""
    vae_width: int
    """Channels of the VAE's last stage."""
    vae_halo: int
    """Latent cells that a tile sees on each side."""


def encoder_facts(bundle: Bundle) -> EncoderFacts:
    """Read the sizes of a bundle's encoders; no weights are loaded. Raises LumosXError."""
    from diffusers import AutoencoderKLWan

    sizes = vae_sizes(autoencoder_state(bundle.require("vae")).shapes)
    build: Any = AutoencoderKLWan
    with torch.device("meta"):
        model = build(**sizes)
    files = bundle.require("text_encoder").files
    return EncoderFacts(
        text_encoder_bytes=sum(file.stat().st_size for file in files),
        vae_bytes=FLOAT_BYTES * sum(parameter.numel() for parameter in model.parameters()),
        vae_width=int(model.config.base_dim),
        vae_halo=halo(model.decoder),
    )

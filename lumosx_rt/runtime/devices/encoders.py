"""An engine's text encoder and VAE, loaded to where they run."""

import logging

from lumosx_rt.reference.checkpoints.bundle import Bundle
from lumosx_rt.reference.encoders.umt5 import TextEncoder, load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder, load_vae
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.runtime.devices.remembered import Remembered, RememberingTextEncoder, RememberingVae
from lumosx_rt.runtime.devices.vae_precision import in_bfloat16

log = logging.getLogger("lumosx_rt")


def text_encoder_on(
    device: str, components: Bundle, text_len: int, text_dim: int, remembered: Remembered
) -> TextEncoder:
    """Load the text encoder for a transformer that reads so many words of this width.

    Raises LumosXError for an encoder of another width.
    """
    encoder = RememberingTextEncoder(
        lambda: load_text_encoder(components, text_len, device=device), remembered
    )
    if encoder.text_dim != text_dim:
        raise BadInput(
            f"text encoder: its embeddings are {encoder.text_dim} wide, the transformer reads "
            f"{text_dim}; they are not of one model"
        )
    return encoder


def vae_on(device: str, components: Bundle, remembered: Remembered) -> VideoAutoencoder:
    """Load the VAE; on a GPU it decodes in bfloat16 where that shows nowhere."""
    vae, decoder = load_vae(components, device=device), None
    if device != "cpu":
        decoder, verdict = in_bfloat16(vae)
        log.info("the VAE decodes in %s", verdict)
    return RememberingVae(vae, remembered, decoder)

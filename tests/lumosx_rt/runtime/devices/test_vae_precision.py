"""A VAE decodes in bfloat16 only where that shows nowhere."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder, load_vae
from lumosx_rt.reference.errors import NotFinite
from lumosx_rt.runtime.devices import vae_precision
from lumosx_rt.runtime.devices.remembered import Remembered, RememberingVae
from lumosx_rt.runtime.devices.vae_precision import Verdict, in_bfloat16, judged


@pytest.fixture
def vae(monkeypatch):
    """The VAE of the shipped checkpoint, which was trained."""
    monkeypatch.setattr(vae_precision, "_TRIED", (2, 4, 6))
    return load_vae(Path(__file__).parents[4] / "checkpoints/tiny")


def test_it_decodes_in_bfloat16_where_frames_are_the_same(vae):
    decoder, verdict = in_bfloat16(vae)
    assert decoder is not None and verdict.passes and verdict.db > 45
    assert decoder.model.dtype == torch.bfloat16 and vae.model.dtype == torch.float32
    latents = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(5))
    exact, rounded = (v.decode_frames_uint8(latents) for v in (vae, decoder))
    assert (exact != rounded).any()  # control: it is another format
    assert judged(exact, rounded).passes
    both = RememberingVae(vae, Remembered(), decoder)
    assert np.array_equal(both.decode_frames_uint8(latents), rounded)
    pictures = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert torch.equal(both.encode_images(pictures), vae.encode_images(pictures))  # as ever


def test_a_vae_that_bfloat16_harms_stays_in_float32(vae):
    """Control. Contrast forty times as strong: a rounding of bfloat16 is many levels then."""
    last = vae.model.decoder.conv_out
    with torch.no_grad():
        last.weight *= 40
        last.bias *= 40
    decoder, verdict = in_bfloat16(vae)
    assert decoder is None and not verdict.passes and str(verdict).startswith("fp32: bf16 has")


def test_a_vae_that_bfloat16_breaks_stays_in_float32(vae, monkeypatch):
    right = VideoAutoencoder.decode_frames_uint8

    def decode(self, latents, tile=None):
        if self.model.dtype == torch.bfloat16:
            raise NotFinite("VAE: decoded pixels are not finite")
        return right(self, latents, tile)

    monkeypatch.setattr(VideoAutoencoder, "decode_frames_uint8", decode)
    decoder, verdict = in_bfloat16(vae)
    assert decoder is None and str(verdict) == "fp32: bf16 decodes to no finite numbers"


@pytest.mark.parametrize(
    ("verdict", "passes"),
    [
        (Verdict(None, 0.0), True),
        (Verdict(45.0, 0.001), True),
        (Verdict(44.9, 0.0), False),
        (Verdict(60.0, 0.002), False),
        (Verdict(None, 0.0, finite=False), False),
    ],
)
def test_the_gate(verdict, passes):
    assert verdict.passes is passes and str(verdict).startswith("bf16" if passes else "fp32")


def test_how_far_frames_are_apart_is_counted_by_hand():
    exact = np.full((1, 10, 10, 1), 100, np.uint8)
    rounded = exact.copy()
    rounded[0, 0, 0], rounded[0, 0, 1] = 95, 104  # 5 and 4 levels away
    found = judged(exact, rounded)
    assert found.far == 0.01 and found.db == pytest.approx(10 * np.log10(255**2 / 0.41))

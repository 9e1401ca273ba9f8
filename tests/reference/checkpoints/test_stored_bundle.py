"""What a bundle says beside its weights, and how it stores them."""

import json

import pytest
import torch

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError

CONFIG = LumosXConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=2, text_dim=32, text_len=16)


def random_model() -> LumosX:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LumosX(CONFIG)


def test_half_precision_costs_half_the_disk_and_little_else(tmp_path):
    model = random_model()
    save_bundle(tmp_path / "whole", transformer=model)
    save_bundle(tmp_path / "half", transformer=model, half=True)
    found = load_transformer(tmp_path / "half")
    for (name, a), b in zip(model.named_parameters(), found.parameters(), strict=True):
        assert b.dtype == a.dtype, name
        assert torch.equal(b, a.half().float() if a.dim() > 1 else a), name
    sizes = [
        (tmp_path / name / "transformer/diffusion_pytorch_model.safetensors").stat().st_size
        for name in ("half", "whole")
    ]
    assert sizes[0] < 0.6 * sizes[1]

    with torch.no_grad():
        model.blocks[0].ffn[0].weight[0, 0] = 1e6
    with pytest.raises(LumosXError, match="too large for half"):
        save_bundle(tmp_path / "large", transformer=model, half=True)
    assert not (tmp_path / "large").exists()


def test_defaults_are_written_beside_the_weights(tmp_path):
    save_bundle(tmp_path / "b", transformer=random_model(), defaults={"frames": 9, "shift": 3.0})
    assert json.loads((tmp_path / "b/defaults.json").read_text()) == {"frames": 9, "shift": 3.0}
    save_bundle(tmp_path / "plain", transformer=random_model())
    assert not (tmp_path / "plain/defaults.json").exists()

"""What is timed: a transformer's sizes and weights, a scene's layout, the inputs of one call."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lumosx_rt.reference.backbones.config import PRESETS, LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.inputs import Inputs, random_inputs

TIME = 500


@dataclass(frozen=True)
class Size:
    """One call: one stream of a scene, with one seed or several."""

    name: str
    config: LumosXConfig
    key: str
    seeds: int = 1
    rounds: int = 3
    """How often everything is run, one after the other."""

    @cached_property
    def layout(self) -> SceneLayout:
        return SceneLayout.from_key(self.key)

    @property
    def without_references(self) -> "Size":
        return replace(self, key=replace(self.layout, lone=0, subjects=()).key)

    @cached_property
    def given(self) -> tuple[Tensor, Inputs]:
        """Latents, and what a backend is bound to. The latents do not depend on the references."""
        latents, _, inputs = random_inputs(self.config, [self.layout], self.seeds)
        words = (inputs.tensors["template"] > 1.3).float()
        return latents, inputs.changed(template=words)


SIZES = {
    size.name: size
    for size in (
        Size("tiny", PRESETS["tiny"], "5x8x18+0+4.4", rounds=9),
        Size("tiny, 4 seeds", PRESETS["tiny"], "5x8x18+0+4.4", seeds=4, rounds=5),
        Size(
            "medium",
            LumosXConfig(
                dim=512, ffn_dim=2048, num_heads=4, num_layers=8, text_dim=512, text_len=512
            ),
            "5x15x26+0+4.4.4",
        ),
    )
}


def loud_model(config: LumosXConfig) -> LumosX:
    """Random weights so large that every part of a block counts; the same each time."""
    noise = torch.Generator().manual_seed(0)
    model = LumosX(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        deviation = 0.3 if "modulation" in name else 0.05 if fan_in == 1 else fan_in**-0.5
        values = torch.randn(parameter.shape, generator=noise) * deviation
        parameter.copy_(1 + values if "norm" in name and name.endswith("weight") else values)
    return model

"""What a training step changes weights with: initial values, the optimizer, averaged weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.training.recipe import OptimizerName

MUON_MOMENTUM = 0.95
ADAMW_BETAS = (0.9, 0.95)


@torch.no_grad()
def initialise(model: LumosX, seed: int) -> LumosX:
    """Random weights to train from, the same for the same seed, on any device; returns the model.

    The patch embedding is orthogonal and the head its transpose, so that an untrained model gives
    back about what it is given; attention and MLP outputs are small, modulation as in Wan2.1.
    """
    generator = torch.Generator().manual_seed(seed)
    dim, layers = model.config.dim, model.config.num_layers
    for name, parameter in model.named_parameters():
        value = torch.zeros(parameter.shape)
        if name.endswith("modulation"):
            value = torch.randn(parameter.shape, generator=generator) / dim**0.5
        elif "norm" in name:
            value = torch.full(parameter.shape, float(name.endswith("weight")))
        elif name == "patch_embedding.weight":
            value = nn.init.orthogonal_(value, generator=generator)
        elif name.endswith("weight"):
            small = 1 / math.sqrt(2 * layers) if name.endswith((".o.weight", "ffn.2.weight")) else 1
            value = nn.init.xavier_uniform_(value, generator=generator) * small
        parameter.copy_(value)
    if model.config.in_dim == model.config.out_dim:
        patch = model.patch_embedding.weight.squeeze(2)  # dim, channel, row, column
        norm = math.sqrt(min(patch[0].numel(), dim) / dim)  # of an embedded patch, which LN undoes
        model.head.head.weight.copy_(patch.permute(2, 3, 1, 0).flatten(0, 2) * norm)
    return model


class Optimizer:
    """Muon for the blocks' matrices and AdamW for everything else, or AdamW for all.

    Both take the same learning rate: Muon's updates are scaled to AdamW's size
    ("match_rms_adamw"). Weight decay falls on matrices only.
    """

    def __init__(self, model: LumosX, kind: OptimizerName, weight_decay: float) -> None:
        self.names = dict(model.named_parameters())
        hidden: list[Tensor] = []
        matrices: list[Tensor] = []
        rest: list[Tensor] = []
        for name, parameter in self.names.items():
            matrix = name.endswith("weight") and parameter.dim() >= 2
            if kind == "muon" and matrix and name.startswith("blocks."):
                hidden.append(parameter)
            else:
                (matrices if matrix else rest).append(parameter)
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, betas=ADAMW_BETAS, fused=True)
        ]
        if hidden:
            self.parts.append(
                torch.optim.Muon(
                    hidden,
                    weight_decay=weight_decay,
                    momentum=MUON_MOMENTUM,
                    adjust_lr_fn="match_rms_adamw",
                )
            )

    def step(self, learning_rate: float) -> None:
        """Changes the weights by their gradients, and forgets these."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return its tensors as `<parameter>.<what>`; empty before the first step."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.names.items()
            for part in self.parts
            for key, value in part.state.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Raises LumosXError for a parameter that does not exist."""
        for name, value in state.items():
            parameter, _, key = name.rpartition(".")
            if parameter not in self.names:
                raise BadInput(f"optimizer state: there is no parameter '{parameter}'")
            place = self.names[parameter]
            for part in self.parts:
                if any(place is p for group in part.param_groups for p in group["params"]):
                    part.state[place][key] = value.to(place.device, copy=True)


class Average:
    """Exponential moving average of a model's weights, in float32 beside them."""

    def __init__(self, model: nn.Module) -> None:
        self.sources = dict(model.named_parameters())
        self.weights = {name: p.detach().clone() for name, p in self.sources.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Update average <- decay * average + (1 - decay) * weights."""
        weights: list[Tensor] = list(self.sources.values())
        torch._foreach_lerp_(list(self.weights.values()), weights, 1 - decay)


def ema_decay(step: int, highest: float) -> float:
    """Return the decay after a step, counted from 0: warmed up, so that an average forgets its
    start."""
    return min(highest, (1 + step) / (10 + step))

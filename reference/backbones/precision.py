"""A model in another number format, weights shared where they stay."""

import torch

from lumosx_rt.reference.backbones.wan import LumosX


def recast(model: LumosX, dtype: torch.dtype, device: str = "cpu") -> LumosX:
    """A copy of a model with linears and attention in `dtype`; what is released in float32 stays.

    Weights that keep dtype and device are shared with the model, which stays as it was.
    """
    with torch.device("meta"):
        copy = LumosX(model.config, dtype)
    wanted = {name: parameter.dtype for name, parameter in copy.named_parameters()}
    weights = {name: x.to(device, wanted[name]) for name, x in model.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy.to(device).eval().requires_grad_(False)

"""What shares a scale in FP8, and what is done to keys."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lumosx_rt.reference.backbones.ops import over_seeds
from lumosx_rt.reference.errors import BadInput

Scales = dict[str, dict[str, float]]
"""Site -> role (x; q, k, v) -> what divides its operand into e4m3's range."""


@dataclass(frozen=True)
class Scheme:
    """What shares a scale, and whether keys are smoothed by their mean."""

    weights: Literal["tensor", "channel"] = "channel"
    activations: Literal["tensor", "row"] = "tensor"
    """tensor: calibrated beforehand; row: found as they come."""
    smooth_keys: bool = True

    def __post_init__(self) -> None:
        for name, accepted in (
            ("weights", ("tensor", "channel")),
            ("activations", ("tensor", "row")),
        ):
            if getattr(self, name) not in accepted:
                raise BadInput(
                    f"{name}: got {getattr(self, name)!r}, accepted are {', '.join(accepted)}"
                )
        if type(self.smooth_keys) is not bool:
            raise BadInput(f"smooth_keys: got {self.smooth_keys!r}, accepted are true, false")
        if self.activations == "row" and not self.smooth_keys:
            raise BadInput("activations a row at a time come with smoothed keys, as in kernels/")


def centred(video_k: Tensor, condition_k: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of video [streams * seeds, tokens, heads, head_dim] and condition [streams, ...] less
    their mean over all tokens of their stream, in their dtype."""
    streams = condition_k.shape[0]
    seeds = video_k.shape[0] // streams
    own = video_k.float().unflatten(0, (streams, seeds)).flatten(1, 2)
    mean = torch.cat([own, condition_k.float()], 1).mean(1, keepdim=True)
    video = (video_k - over_seeds(mean, seeds)).to(video_k.dtype)
    return video, (condition_k - mean).to(condition_k.dtype)


def without_mean(k: Tensor) -> Tensor:
    """Keys [batch, tokens, heads, head_dim] less their mean over the tokens, in their dtype."""
    return (k - k.float().mean(1, keepdim=True)).to(k.dtype)

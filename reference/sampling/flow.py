"""Flow matching: the sampler, guidance and the training objective (docs/spec.md#sampling and
#training).

sigma runs from 1 (noise) to 0 (video);  x_sigma = (1 - sigma) x0 + sigma noise
the model predicts the velocity  noise - x0
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from lumosx_rt.reference.sampling.schedules import TIMES


def add_noise(x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Return x_t = (1 - t/1000) x0 + t/1000 noise; time: float [batch], 0..1000, not truncated."""
    s = (time / TIMES).reshape(-1, *[1] * (x0.dim() - 1))
    return (1 - s) * x0 + s * noise


def shift_time(
    time: Tensor,
    *,
    height: int,
    width: int,
    num_frames: int,
    scale: float = 1.0,
    mode: Literal["dynamic", "fixed"] = "dynamic",
) -> Tensor:
    """Return the optional resolution shift of training times (docs/spec.md#time-shift); sizes in
    pixels and frames."""
    ratio = scale
    if mode == "dynamic":
        length = 1.0 if num_frames == 1 else (num_frames // 4 + 1) ** 0.5
        ratio = max((height * width / 512**2) ** 0.5, 1.0) * length * scale
    t = time / TIMES
    return ratio * t / (1 + (ratio - 1) * t) * TIMES


def training_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    noise: Tensor,
    time: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Flow-matching loss of each clip over the video frames (docs/spec.md#training).

    model: (x_t, int64 time) -> velocity, at least as many frames as x0 (any more are references).
    x0, noise: [batch, channels, frames, rows, columns]; time: float [batch], 0..1000;
    weights: optional table [1000], looked up at the truncated time. Returns [batch].
    """
    truncated = time.long()
    velocity = model(add_noise(x0, noise, time), truncated)[:, :, : x0.shape[2]]
    loss = (velocity.float() - (noise - x0)).square().flatten(1).mean(1)
    return loss if weights is None else loss * weights[truncated]

"""Pictures through a VAE of clips, faster.

For one frame a causal convolution in time is its last slice, a convolution in the plane: a third
of the work, and the same numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def planar(model: Any) -> Iterator[None]:
    """Within it an AutoencoderKLWan takes clips of one frame only, exactly and with gradients."""
    convs = [module for module in model.modules() if hasattr(module, "_padding")]
    for conv in convs:
        conv.forward = MethodType(_in_the_plane, conv)
    try:
        yield
    finally:
        for conv in convs:
            del conv.forward


def _in_the_plane(conv: Any, x: Tensor, cache: Tensor | None = None) -> Tensor:
    padding = (conv._padding[2], conv._padding[0])
    plane = x[:, :, 0].contiguous(memory_format=torch.channels_last)
    kernel = conv.weight[:, :, -1]
    return F.conv2d(plane, kernel, conv.bias, conv.stride[1:], padding)[:, :, None]

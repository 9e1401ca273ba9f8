"""e4m3 there and back: what every FP8 engine does around its products.

    x8 = (x / scale).clamp(-448, 448).to(e4m3)          quantize
    x  = x8.to(float32) * scale                         dequantize

One formula, spelled twice: here in torch, which packages and the simulation run; and as nodes of
ONNX (`export/onnx/ops.py`), which onnxruntime and TensorRT take in with the products beside them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

E4M3, E4M3_MAX = torch.float8_e4m3fn, 448.0
LEAST = 1e-12  # an amax below is taken for this
PROBABILITY_SCALE = 1 / E4M3_MAX
"""Of softmax's results, whatever they are."""


def quantize(x: Tensor, scale: Tensor | float) -> Tensor:
    """Return x over its scale, saturated and rounded to e4m3; scale: one number, or
    broadcastable."""
    # as a tensor: a GPU divides by a number by multiplying with its reciprocal
    divisor = torch.as_tensor(scale, dtype=torch.float32, device=x.device)
    return (x.float() / divisor).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def dequantize(x8: Tensor, scale: Tensor | float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return what is left of x, in `dtype`."""
    return (x8.float() * scale).to(dtype)


def scale_of(amax: float) -> float:
    """Return the float32 scale that maps an amax to 448."""
    return float(torch.tensor(max(amax, LEAST), dtype=torch.float32) / E4M3_MAX)


def weight_scale(weight: Tensor, shared: str) -> Tensor:
    """Return the scales of a matrix [out, in]: [out, 1], one a "channel"; or [1, 1], one a
    "tensor"."""
    amax = weight.float().abs().amax(1, keepdim=True)
    if shared == "tensor":
        return amax.amax(0, keepdim=True).clamp_min(LEAST) / E4M3_MAX
    return amax.clamp_min(LEAST) * (1.0 / E4M3_MAX)


class Qdq(NamedTuple):
    """How a model that is traced says it."""

    quantize: Callable[[Tensor, Tensor], Tensor]
    """(x, scale []) -> e4m3."""
    dequantize: Callable[[Tensor, Tensor, torch.dtype], Tensor]
    """(e4m3, scale [] or [last axis], dtype) -> x."""

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        """There and back, in x's dtype."""
        return self.dequantize(self.quantize(x, scale), scale, x.dtype)


PLAIN = Qdq(quantize, dequantize)

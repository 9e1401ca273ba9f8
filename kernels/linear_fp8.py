"""Linear layers in e4m3: cuBLASLt's product, and the quantization around it.

    y = (x8 @ w8.T) * x_scale * w_scale + bias               # float32 accumulation, bf16 out
    row-wise:     x_scale a token, w_scale an output channel     (scales found as x comes)
    calibrated:   one x_scale, known beforehand; one w_scale, or one an output channel
    between the MLP's two:  g = gelu(h);  scale = g.abs().amax(-1) / 448;  g8 = (g / scale).to(e4m3)

Layers are replaced from outside; the model never asks whether it is quantized. A layer that is
handed `QuantizedRows` (by `norm_modulate` or the layer before) does not quantize again.
"""

from typing import Literal

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from lumosx_rt.kernels.norm_modulate import QuantizedRows, quantize_rows, rows_in_e4m3
from lumosx_rt.kernels.numerics import cast, row_scale
from lumosx_rt.kernels.operator import launcher, operator
from lumosx_rt.kernels.qdq import quantize, weight_scale
from lumosx_rt.kernels.tiles import RowTiles, row_tiles

Scaling = Literal["row", "tensor"]
_TANH_SCALE: tl.constexpr = tl.constexpr(1.5957691216057308)  # 2 * sqrt(2 / pi)


class LinearFp8(nn.Module):
    """`nn.Linear` in e4m3, made from one. [..., in] or `QuantizedRows` -> [..., out].

    input_scale: with it, x is divided by it and clamped; without, row-wise. weights: what shares
    a scale, a "channel" of the output or the whole "tensor" (calibrated inputs only).
    Raises ValueError where a size is no multiple of 16, which the matrix units need.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self, linear: nn.Linear, input_scale: float | None = None, weights: str = "channel"
    ) -> None:
        super().__init__()
        if linear.in_features % 16 or linear.out_features % 16:
            sizes = f"{linear.in_features} -> {linear.out_features}"
            raise ValueError(f"e4m3 products need sizes that are multiples of 16, got {sizes}")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        weight = linear.weight.detach().float()
        if input_scale is None and weights != "channel":
            raise ValueError("scales found row by row come with weights a channel")
        scale = weight_scale(weight, weights)
        self.register_buffer("weight", quantize(weight, scale))
        self.register_buffer("weight_scale", scale.T.contiguous())  # [1, out] or [1, 1]
        given = None if input_scale is None else weight.new_full((1, 1), input_scale)
        self.register_buffer("input_scale", given)
        bias = None if linear.bias is None else linear.bias.detach().to(self.dtype)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        rows = self._quantized(x)
        shape = rows.values.shape[:-1]
        values, scale = rows.values.flatten(0, -2), rows.scale.flatten(0, -2)
        if scale.shape[0] != values.shape[0] and self.weight_scale.shape[1] > 1:
            scale = scale.expand(values.shape[0], 1).contiguous()  # channels ask for rows
        out = scaled_product(values, self.weight, scale, self.weight_scale, self.bias, self.dtype)
        return out.unflatten(0, shape)

    def _quantized(self, x: Tensor | QuantizedRows) -> QuantizedRows:
        if isinstance(x, QuantizedRows):
            if self.input_scale is not None:
                raise ValueError("a layer with a calibrated input scale takes no quantized rows")
            return x
        if self.input_scale is None:
            return rows_in_e4m3(x)
        return QuantizedRows(quantize(x, self.input_scale), self.input_scale)


class GeluQuantize(nn.Module):
    """The MLP's activation where the next layer is `LinearFp8`: GELU (tanh), a scale a row."""

    def forward(self, x: Tensor) -> QuantizedRows:
        flat = x.contiguous().flatten(0, -2)
        values, scale = _OPERATOR(flat)
        return QuantizedRows(values.unflatten(0, x.shape[:-1]), scale.unflatten(0, x.shape[:-1]))


def quantize_mlp(mlp: nn.Sequential) -> nn.Sequential:
    """Linear, GELU, Linear in e4m3, row-wise, with the quantization inside the activation."""
    first, activation, second = mlp
    if not (isinstance(first, nn.Linear) and isinstance(second, nn.Linear)):
        raise ValueError("an MLP is linear, GELU, linear")
    if not (isinstance(activation, nn.GELU) and activation.approximate == "tanh"):
        raise ValueError("an MLP's activation is GELU in its tanh form")
    return nn.Sequential(LinearFp8(first), GeluQuantize(), LinearFp8(second))


def scaled_product(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    fast_sums: bool = True,
) -> Tensor:
    """x [m, k] @ weight [n, k].T in e4m3, times the scales ([m, 1] and [1, n], or [1, 1] both).

    fast_sums: of a GPU's matrix units, with fewer bits than float32.
    """
    if x.is_cuda:
        return torch._scaled_mm(
            x,
            weight.T,
            x_scale,
            weight_scale,
            bias=bias,
            out_dtype=dtype,
            use_fast_accum=fast_sums,
        )
    out = x.float() @ weight.float().T * x_scale * weight_scale
    return (out if bias is None else out + bias).to(dtype)


@triton.jit(do_not_specialize=["rows"])
def kernel(
    x,
    out,
    scale,
    rows,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program: one row, read twice (the second time from cache)."""
    row = tl.program_id(0).to(tl.int64)
    width = tl.where(row < rows, DIM, 0)
    column = tl.arange(0, BLOCK)
    most = tl.zeros([BLOCK], tl.float32)
    for start in range(0, DIM, BLOCK):
        inside = start + column < width
        h = tl.load(x + row * DIM + start + column, mask=inside, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(_gelu(h)))
    step = row_scale(most, 0)
    tl.store(scale + row, step, mask=row < rows)
    for start in range(0, DIM, BLOCK):
        inside = start + column < width
        h = tl.load(x + row * DIM + start + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(
            out + row * DIM + start + column, cast(_gelu(h) / step, tl.float8e4nv), mask=inside
        )


@triton.jit
def _gelu(x):
    # x / 2 * (1 + tanh(u)) is x * sigmoid(2 u)
    return x * tl.sigmoid((x + 0.044715 * x * x * x) * _TANH_SCALE)


def _empty(x: Tensor) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape, dtype=torch.float8_e4m3fn),
        x.new_empty((x.shape[0], 1), dtype=torch.float32),
    )


def _plain(x: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(quantize_rows(F.gelu(x.float(), approximate="tanh")))  # type: ignore[return-value]


def _launch(x: Tensor) -> tuple[Tensor, Tensor]:
    outputs = _empty(x)
    tiles = row_tiles("gelu_quantize", x.device)
    launcher(kernel, (torch.sym_max(x.shape[0], 1),))(
        x, *outputs, x.shape[0], **constants(x.shape[1], tiles), num_warps=tiles.num_warps
    )
    return outputs


def constants(dim: int, tiles: RowTiles) -> dict[str, int]:
    """Return the kernel's compile-time arguments; a chunk of a row is tiles.rows * 1024 wide."""
    return {"DIM": dim, "BLOCK": min(triton.next_power_of_2(dim), tiles.rows * 1024)}


_OPERATOR = operator("gelu_quantize", _launch, _plain, _empty)

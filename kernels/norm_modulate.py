"""Residual add with gate, layer norm, modulate: one pass over memory.

    x = x + gate * delta
    h = (x - x.mean(-1)) * rsqrt(x.var(-1) + eps)
    y = (h * scale + shift).to(dtype)                  # or x.to(dtype) where nothing is normed
    optional: y_scale = y.abs().amax(-1) / 448;  y = (y / y_scale).to(e4m3)

Statistics and residual in float32. Bytes per token, dim d, bfloat16 around a float32 residual:
4d + 2d read, 4d + 2d written (d instead of the last 2d in e4m3).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lumosx_rt.kernels.numerics import E4M3_MAX, cast, row_scale
from lumosx_rt.kernels.operator import check, check_broadcast, launcher, operator
from lumosx_rt.kernels.tiles import RowTiles, row_tiles
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import NormModulate


class QuantizedRows(NamedTuple):
    """A tensor in e4m3 with one scale a row: values [..., dim], scale float32 [..., 1]."""

    values: Tensor
    scale: Tensor


def norm_modulate(call: NormModulate) -> tuple[Tensor, Tensor]:
    """Compute `reference.ops.norm_modulate` on a GPU.

    Raises ValueError on shapes it does not take.
    """
    x_out, y, _ = _OPERATOR(*_checked(call), call.eps, call.dtype, False)
    return (call.x if call.delta is None else x_out), y


def norm_modulate_quantized(call: NormModulate) -> tuple[Tensor, QuantizedRows]:
    """Compute the same with y in e4m3, one scale a row, whatever dtype the call names."""
    x_out, y, y_scale = _OPERATOR(*_checked(call), call.eps, torch.float8_e4m3fn, True)
    return (call.x if call.delta is None else x_out), QuantizedRows(y, y_scale)


def rows_in_e4m3(y: Tensor) -> QuantizedRows:
    """Compute y [..., dim] in e4m3 with a scale a row, in one pass."""
    flat = y.reshape(1, -1, y.shape[-1])
    call = NormModulate(flat, None, None, None, None, 0.0, torch.float8_e4m3fn)
    _, rows = norm_modulate_quantized(call)
    return QuantizedRows(rows.values.reshape(y.shape), rows.scale.reshape((*y.shape[:-1], 1)))


def quantize_rows(y: Tensor) -> QuantizedRows:
    """Do as `rows_in_e4m3` in plain torch."""
    wide = y.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-12) * (1.0 / E4M3_MAX)
    values = (wide / scale).clamp(-E4M3_MAX, E4M3_MAX)
    return QuantizedRows(values.to(torch.float8_e4m3fn), scale)


def _checked(call: NormModulate) -> tuple[Tensor | None, ...]:
    x, delta, gate, scale, shift, *_ = call
    if x.dim() != 3:
        raise ValueError(f"`x` must have shape [batch, tokens, dim], got {list(x.shape)}")
    batch, _, dim = x.shape
    if delta is not None:
        check("delta", delta, "[batch, tokens, dim]", x.shape)
        delta = delta.contiguous()
    rows: list[Tensor | None] = []
    for name, row in (("gate", gate), ("scale", scale), ("shift", shift)):
        if row is None:
            rows.append(None)
            continue
        row = row.reshape(1, 1, -1) if row.dim() == 1 else row
        check(name, row, "[batch or 1, 1, dim]", (None, 1, dim))
        check_broadcast(name, row.shape[0], batch)
        rows.append(row.float().expand(batch, 1, dim))
    if (scale is None) != (shift is None):
        raise ValueError("`scale` and `shift` must be given together")
    return (x.contiguous(), delta, *rows)


@triton.jit(do_not_specialize=["tokens"])
def kernel(
    x,
    delta,
    gate,
    scale,
    shift,
    x_out,
    y_out,
    y_scale,
    tokens,
    gate_stride,
    scale_stride,
    shift_stride,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_DELTA: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    """A program: ROWS tokens of one batch entry, with their modulation kept in registers."""
    batch = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    if HAS_GATE:
        gates = tl.load(gate + batch * gate_stride + column, mask=inside, other=0.0)
    if HAS_NORM:
        scales = tl.load(scale + batch * scale_stride + column, mask=inside, other=0.0)
        shifts = tl.load(shift + batch * shift_stride + column, mask=inside, other=0.0)
    for row in range(ROWS):
        token = tl.program_id(0) * ROWS + row
        at = (batch * tokens + token) * DIM + column
        here = column < tl.where(token < tokens, DIM, 0)
        h = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        if HAS_DELTA:
            added = tl.load(delta + at, mask=here, other=0.0).to(tl.float32)
            if HAS_GATE:
                added = added * gates
            h = h + added
            tl.store(x_out + at, cast(h, x_out.dtype.element_ty), mask=here)
        if HAS_NORM:
            centred = tl.where(inside, h - tl.sum(h, 0) / DIM, 0.0)
            h = centred * tl.rsqrt(tl.sum(centred * centred, 0) / DIM + EPS) * scales + shifts
        if QUANTIZE:
            step = row_scale(h, 0)
            tl.store(y_scale + batch * tokens + token, step, mask=token < tokens)
            h = h / step
        tl.store(y_out + at, cast(h, y_out.dtype.element_ty), mask=here)


def _empty(
    x: Tensor,
    delta: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    quantize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if delta is not None else (0,)),
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty((*x.shape[:2], 1) if quantize else (0,), dtype=torch.float32),
    )


def _plain(
    x: Tensor,
    delta: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    quantize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = torch.float32 if quantize else dtype
    x_out, y = ops.norm_modulate(NormModulate(x, delta, gate, scale, shift, eps, wanted))
    x_out = x.new_empty((0,)) if delta is None else x_out
    if quantize:
        return x_out, *quantize_rows(y)
    # an operator's output must not be its input, which casting to the same type would return
    return x_out, y.clone() if scale is None else y, x.new_empty((0,), dtype=torch.float32)


def _launch(
    x: Tensor,
    delta: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    quantize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _empty(x, delta, gate, scale, shift, eps, dtype, quantize)
    batch, tokens, dim = x.shape
    tiles = row_tiles("norm_modulate", x.device)
    grid = (torch.sym_max(triton.cdiv(tokens, tiles.rows), 1), batch)
    launcher(kernel, grid)(
        x,
        *(x if given is None else given for given in (delta, gate, scale, shift)),
        x if delta is None else outputs[0],
        outputs[1],
        outputs[2] if quantize else x,
        tokens,
        *(0 if row is None else row.stride(0) for row in (gate, scale, shift)),
        **constants(dim, tiles, delta, gate, scale, quantize, eps),
        num_warps=tiles.warps(triton.next_power_of_2(dim)),
    )
    return outputs


def constants(
    dim: int,
    tiles: RowTiles,
    delta: object,
    gate: object,
    scale: object,
    quantize: bool,
    eps: float,
) -> dict[str, Any]:
    """Return the kernel's compile-time arguments; None for what is absent."""
    return {
        "EPS": eps,
        "DIM": dim,
        "BLOCK": triton.next_power_of_2(dim),
        "ROWS": tiles.rows,
        "HAS_DELTA": delta is not None,
        "HAS_GATE": gate is not None,
        "HAS_NORM": scale is not None,
        "QUANTIZE": quantize,
    }


_OPERATOR = operator(
    "norm_modulate",
    _launch,
    _plain,
    _empty,
)

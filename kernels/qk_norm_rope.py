"""RMS norm over the whole width, then relational rotation (R2PE): one read, one write.

    h = x * rsqrt((x * x).mean(-1) + eps) * weight           # [batch, tokens, heads * head_dim]
    h = h.unflatten(-1, (heads, head_dim))
    even, odd = h[..., 0::2], h[..., 1::2]                    # adjacent channels are a pair
    y[..., 0::2] = even * cos - odd * sin                     # cos, sin: [tokens, pairs], a table
    y[..., 1::2] = even * sin + odd * cos

In float32 with one rounding at the end. Attention quantizes queries as it loads them and keys
against the mean of all keys, so there is no e4m3 output here.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lumosx_rt.kernels.numerics import cast
from lumosx_rt.kernels.operator import check, check_broadcast, launcher, operator
from lumosx_rt.kernels.tiles import RowTiles, row_tiles
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import QkNormRope


def qk_norm_rope(call: QkNormRope) -> Tensor:
    """Compute `reference.ops.qk_norm_rope` on a GPU: [batch, tokens, dim] -> [.., heads, head_dim].

    Raises ValueError on shapes it does not take.
    """
    x, weight, rope, heads, eps = call
    if x.dim() != 3 or x.shape[2] % (2 * heads):
        raise ValueError(
            f"`x` must have shape [batch, tokens, {heads} even heads], got {list(x.shape)}"
        )
    batch, tokens, dim = x.shape
    if weight is not None:
        check("weight", weight, "[dim]", [dim])
    if rope is not None:
        shape = [2, None, tokens, dim // heads // 2]
        check("rope", rope, "[2, batch or 1, tokens, pairs]", shape)
        check_broadcast("rope", rope.shape[1], batch)
        rope = rope.float().contiguous().expand(-1, batch, -1, -1)
    if weight is None and rope is None:
        return x.unflatten(-1, (heads, -1))
    return _OPERATOR(x.contiguous(), weight, rope, heads, eps)


@triton.jit(do_not_specialize=["tokens"])
def kernel(
    x,
    weight,
    rope,
    out,
    tokens,
    rope_stride,
    sine_offset,
    EPS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_ROPE: tl.constexpr,
):
    """A program: ROWS tokens of one batch entry, each as a [heads, head_dim] tile."""
    batch = tl.program_id(1).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    channel = tl.arange(0, 2 * BLOCK_PAIRS)[None, :]
    column = head * HEAD_DIM + channel
    inside = (head < HEADS) & (channel < HEAD_DIM)
    pair = tl.arange(0, BLOCK_PAIRS)
    if HAS_WEIGHT:
        weights = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    for row in range(ROWS):
        token = tl.program_id(0) * ROWS + row
        at = (batch * tokens + token) * (HEADS * HEAD_DIM) + column
        width = tl.where(token < tokens, HEAD_DIM, 0)  # nothing, past the end
        here = (head < HEADS) & (channel < width)
        h = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            mean_square = tl.sum(tl.sum(h * h, 1), 0) / (HEADS * HEAD_DIM)
            h = h * tl.rsqrt(mean_square + EPS) * weights
        if HAS_ROPE:
            angle = rope + batch * rope_stride + token.to(tl.int64) * (HEAD_DIM // 2) + pair
            known = pair < width // 2
            cosine = tl.load(angle, mask=known, other=0.0)[None, :]
            sine = tl.load(angle + sine_offset, mask=known, other=0.0)[None, :]
            even, odd = tl.split(tl.reshape(h, [BLOCK_HEADS, BLOCK_PAIRS, 2]))
            turned = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
            h = tl.reshape(turned, [BLOCK_HEADS, 2 * BLOCK_PAIRS])
        tl.store(out + at, cast(h, out.dtype.element_ty), mask=here)


def _empty(x: Tensor, weight: Tensor | None, rope: Tensor | None, heads: int, eps: float) -> Tensor:
    return x.new_empty((*x.shape[:2], heads, x.shape[2] // heads))


def _plain(x: Tensor, weight: Tensor | None, rope: Tensor | None, heads: int, eps: float) -> Tensor:
    return ops.qk_norm_rope(QkNormRope(x, weight, rope, heads, eps))


def _launch(
    x: Tensor, weight: Tensor | None, rope: Tensor | None, heads: int, eps: float
) -> Tensor:
    out = _empty(x, weight, rope, heads, eps)
    batch, tokens, dim = x.shape
    tiles = row_tiles("qk_norm_rope", x.device)
    grid = (torch.sym_max(triton.cdiv(tokens, tiles.rows), 1), batch)
    launcher(kernel, grid)(
        x,
        x if weight is None else weight,
        x if rope is None else rope,
        out,
        tokens,
        0 if rope is None else rope.stride(1),
        0 if rope is None else rope.stride(0),
        **constants(dim, heads, tiles, weight, rope, eps),
        num_warps=tiles.warps(triton.next_power_of_2(dim)),
    )
    return out


def constants(
    dim: int, heads: int, tiles: RowTiles, weight: object, rope: object, eps: float
) -> dict[str, Any]:
    """Return the kernel's compile-time arguments; None for what is absent."""
    return {
        "EPS": eps,
        "HEADS": heads,
        "HEAD_DIM": dim // heads,
        "BLOCK_HEADS": triton.next_power_of_2(heads),
        "BLOCK_PAIRS": triton.next_power_of_2(dim // heads // 2),
        "ROWS": tiles.rows,
        "HAS_WEIGHT": weight is not None,
        "HAS_ROPE": rope is not None,
    }


_OPERATOR = operator(
    "qk_norm_rope",
    _launch,
    _plain,
    _empty,
)

"""A tile of queries over a range of keys, with a running softmax: the core of both attentions.

    s = q @ k.T * scale  (+ bias);   p = exp(s - peak);   acc = acc * exp(old peak - peak) + p @ v
    total = total * exp(old peak - peak) + p.sum(-1);     in the end out = acc / total

Everything in powers of two (`scale` includes log2 e), accumulated in float32. In e4m3, queries
carry a scale a row, keys one a block, values one a channel, and p is multiplied by 2^8 so that
small probabilities keep their bits.
"""

import triton
import triton.language as tl

from lumosx_rt.kernels.numerics import LOG2E, cast, dot
from lumosx_rt.kernels.quantize_kv import KEY_BLOCK

_KEY_BLOCK: tl.constexpr = tl.constexpr(KEY_BLOCK)
_LOG2E: tl.constexpr = tl.constexpr(LOG2E)


@triton.jit
def over_range(
    acc,
    peak,
    total,
    q,
    q_step,
    offset,
    k,
    v,
    k_scale,
    v_stride,
    begin,
    end,
    scale,
    bias,
    inside_m,
    ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BIASED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    """Queries over keys begin..end of one sequence; returns acc, peak, total.

    acc [m, d], peak and total [m] float32; q [m, d]. k: first key of this head, rows ROW apart;
    v likewise, or [d, tokens] with rows v_stride apart where QUANTIZED, when q_step and offset [m]
    are the queries' scales and their product with the keys' mean (in logits of base two).
    Where BIASED, k_scale is a table and bias [m] where each query's row of it begins, to be added
    to logits of base e.

    Key tiles lie on the grid of BLOCK_N, so a tile never crosses a block of scales; those that
    reach over the range's ends are masked and come last.
    """
    keys_desc, values_desc = k, v
    if DESCRIPTORS:
        keys_desc = tl.make_tensor_descriptor(k, [end, ROW], [ROW, 1], [BLOCK_N, BLOCK_D])
        if QUANTIZED:
            # rows end where the padding to whole blocks does, so strides keep their alignment
            values_desc = tl.make_tensor_descriptor(
                v, [BLOCK_D, v_stride], [v_stride, 1], [BLOCK_D, BLOCK_N]
            )
        else:
            values_desc = tl.make_tensor_descriptor(v, [end, ROW], [ROW, 1], [BLOCK_N, BLOCK_D])
    first_whole = tl.cdiv(begin, BLOCK_N) * BLOCK_N
    last_whole = end // BLOCK_N * BLOCK_N
    for start in tl.range(first_whole, last_whole, BLOCK_N, warp_specialize=WARP_SPECIALIZE):
        acc, peak, total = _tile(
            acc, peak, total, q, q_step, offset, keys_desc, values_desc, k_scale, v_stride,
            start, begin, end, scale, bias, inside_m, False, ROW, HEAD_DIM, BLOCK_D, BLOCK_N,
            QUANTIZED, BIASED, DESCRIPTORS,
        )  # fmt: skip
    for edge in range(2):
        start = tl.where(edge == 0, begin // BLOCK_N * BLOCK_N, last_whole)
        ragged = tl.where(edge == 0, begin % BLOCK_N != 0, end % BLOCK_N != 0)
        # a range inside one tile is met once
        if ragged & ((edge == 0) | (last_whole >= first_whole)):
            acc, peak, total = _tile(
                acc, peak, total, q, q_step, offset, keys_desc, values_desc, k_scale, v_stride,
                start, begin, end, scale, bias, inside_m, True, ROW, HEAD_DIM, BLOCK_D, BLOCK_N,
                QUANTIZED, BIASED, DESCRIPTORS,
            )  # fmt: skip
    return acc, peak, total


@triton.jit
def _tile(
    acc,
    peak,
    total,
    q,
    q_step,
    offset,
    k,
    v,
    k_scale,
    v_stride,
    start,
    begin,
    end,
    scale,
    bias,
    inside_m,
    MASKED: tl.constexpr,
    ROW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BIASED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    key = start + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_D)
    known = (key >= begin) & (key < end)
    if DESCRIPTORS:
        keys = k.load([start, 0]).T
    else:
        at = tl.arange(0, BLOCK_N)[None, :] * ROW + channel[:, None]
        keys = _load(
            k + start * ROW + at,
            known[None, :],
            channel[:, None],
            MASKED,
            HEAD_DIM,
            BLOCK_D,
        )
    s = dot(q, keys, tl.zeros([q.shape[0], BLOCK_N], tl.float32))
    if MASKED:
        s = tl.where(known[None, :], s, -float("inf"))
    # the product with the scale is left to fused multiply-adds inside the exponential
    if QUANTIZED:
        step = q_step * (tl.load(k_scale + start // _KEY_BLOCK) * scale)
        higher = tl.maximum(peak, tl.max(s, 1) * step + offset)
        p = tl.exp2(s * step[:, None] + (offset - higher + 8.0)[:, None])
    elif BIASED:
        mask = inside_m[:, None] & known[None, :]
        added = tl.load(k_scale + (bias[:, None] + key[None, :]), mask=mask, other=0.0).to(
            tl.float32
        )
        s = s * scale + added * _LOG2E
        higher = tl.maximum(peak, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
    else:
        higher = tl.maximum(peak, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - higher[:, None])
    shrink = tl.exp2(peak - higher)
    total = total * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]
    if QUANTIZED:
        if DESCRIPTORS:
            values = v.load([0, start]).T
        else:
            at = channel[None, :] * v_stride + tl.arange(0, BLOCK_N)[:, None]
            values = _load(
                v + start + at, known[:, None], channel[None, :], False, HEAD_DIM, BLOCK_D
            )
        acc = dot(cast(p, tl.float8e4nv), values, acc)
    else:
        if DESCRIPTORS:
            values = v.load([start, 0])
        else:
            at = tl.arange(0, BLOCK_N)[:, None] * ROW + channel[None, :]
            values = _load(
                v + start * ROW + at,
                known[:, None],
                channel[None, :],
                MASKED,
                HEAD_DIM,
                BLOCK_D,
            )
        acc = dot(cast(p, values.dtype), values, acc)
    return acc, higher, total


@triton.jit
def _load(
    pointers,
    known,
    channel,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What pointers hold; zero where a key is not `known` or a channel is padding."""
    if MASKED:
        return tl.load(pointers, mask=known & (channel < HEAD_DIM), other=0.0)
    if HEAD_DIM != BLOCK_D:
        return tl.load(pointers, mask=channel < HEAD_DIM, other=0.0)
    return tl.load(pointers)

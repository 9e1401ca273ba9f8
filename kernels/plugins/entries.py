"""Entry points as ahead-of-time plugins call them: inputs, then 32-bit counts, then outputs.

What a plugin cannot pass at run time (softmax scale, eps, ratio) is compiled in. The kernels are
those of the floor above, without descriptors in device memory.
"""

import triton
import triton.language as tl

from lumosx_rt.kernels import (
    qk_norm_rope,
    relational_attention,
    relational_cross_attention,
)

_self = relational_attention.kernel
_cross = relational_cross_attention.kernel
_table = relational_cross_attention.table_kernel
_norm_rope = qk_norm_rope.kernel


@triton.jit
def relational_self(
    q, k, v, cq, ck, cv, bias_tiles, group_index, group_mask, group_inverse,
    items, video_items, video_tokens, condition_tokens, frame_tokens, seeds, groups, members,
    out, cout,
    SCALE: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`relational_attention.kernel`; bias_tiles only tells the size of a frame."""
    _self(
        q, k, v, cq, ck, cv, q, q, q, q, q, q, group_index, group_mask, group_inverse,
        out, cout, q, items, video_items, video_tokens, condition_tokens, frame_tokens, seeds,
        groups, members, 0, 0, SCALE, HEADS, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        False, False, False, False,
    )  # fmt: skip


@triton.jit
def video_self(
    q, k, v, ck, cv, bias_tiles, group_index, group_mask, group_inverse,
    items, video_tokens, condition_tokens, frame_tokens, seeds, groups, members,
    out,
    SCALE: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The same without condition queries."""
    _self(
        q, k, v, q, ck, cv, q, q, q, q, q, q, group_index, group_mask, group_inverse,
        out, out, q, items, items, video_tokens, condition_tokens, frame_tokens, seeds,
        groups, members, 0, 0, SCALE, HEADS, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N,
        False, False, False, False,
    )  # fmt: skip


@triton.jit
def bias_table(
    q, k, template, tile_pool, bias_tiles,
    references, height, width, tiles, text_len,
    table,
    SCALE: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_L: tl.constexpr, POOLING: tl.constexpr,
):  # fmt: skip
    """`table_kernel`; tile_pool and bias_tiles only tell sizes."""
    _table(
        q, k, template, table, references, height, width, tiles, text_len, SCALE,
        HEADS, HEAD_DIM, BLOCK_D, BLOCK_T, BLOCK_L, POOLING,
    )  # fmt: skip


@triton.jit
def reference_cross(
    q, k, v, table, bias_tiles,
    items, tokens, references, tiles, text_len,
    out,
    SCALE: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`relational_cross_attention.kernel` for reference tokens."""
    _cross(
        q, k, v, table, bias_tiles, out, items, tokens, references, tiles, text_len, SCALE,
        HEADS, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, True, False,
    )  # fmt: skip


@triton.jit
def norm_rope(
    x, weight, rope,
    tokens, rope_stride, sine_offset,
    out,
    EPS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`qk_norm_rope.kernel` with a weight and a table of angles."""
    _norm_rope(
        x, weight, rope, out, tokens, rope_stride, sine_offset, EPS,
        HEADS, HEAD_DIM, BLOCK_HEADS, BLOCK_PAIRS, ROWS, True, True,
    )  # fmt: skip

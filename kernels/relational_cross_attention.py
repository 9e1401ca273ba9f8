"""Cross-attention with a bias from a tiny table (MCAM): the video plain, references biased.

    pooled[t] = q[tokens of the 8x8 tile t].sum() / 64     # borders are diluted by padding
    table[t] = ratio * (pooled[t] @ k.T / sqrt(d)).abs() * template
    s = q @ k.T / sqrt(d);   s[reference tokens p] += table[bias_tiles[p]]
    out = softmax(s) @ v

The table is 28 rows a reference at 480p; a `[tokens, heads, text_len]` bias never exists. Three
launches: the video's attention, the table, the references' attention.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lumosx_rt.kernels.numerics import LOG2E, cast, dot
from lumosx_rt.kernels.online_softmax import over_range
from lumosx_rt.kernels.operator import check, launcher, operator
from lumosx_rt.kernels.tiles import AttentionTiles, attention_tiles, processors
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import Attended, CrossAttention, WordBias
from lumosx_rt.reference.mechanisms.lumosx.layout import POOLING_BLOCK
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure

TILES_AT_ONCE = 16  # pooled rows of one program: the least a matrix unit takes


def relational_cross_attention(call: CrossAttention) -> Attended:
    """Compute `reference.ops.cross_attention` on a GPU.

    Raises ValueError on shapes it does not take.
    """
    video_q, condition_q, k, v, bias, structure, _ = call
    if k.dim() != 4:
        raise ValueError(
            f"`k` must have shape [streams, text_len, heads, head_dim], got {list(k.shape)}"
        )
    streams, text_len, heads, head_dim = k.shape
    axes = "[batch, tokens, heads, head_dim]"
    check("v", v, axes.replace("batch, tokens", "streams, text_len"), k.shape)
    check("video_q", video_q, axes, [None, None, heads, head_dim])
    if video_q.shape[0] % streams:
        raise ValueError(f"`video_q` must hold seeds of {streams} streams, got {video_q.shape[0]}")
    template, ratio = None, 0.0
    if condition_q is not None:
        frame_tokens = structure.bias_tiles.numel()
        references = structure.group_inverse.shape[1]
        sizes = [streams, references * frame_tokens, heads, head_dim]
        check("condition_q", condition_q, axes.replace("batch", "streams"), sizes)
        condition_q = condition_q.contiguous()
        if bias is not None:
            check(
                "bias.template",
                bias.template,
                "[streams, references, text_len]",
                [streams, references, text_len],
            )
            template, ratio = bias.template.float().contiguous(), bias.ratio
    out, cout = _OPERATOR(
        video_q.contiguous(),
        condition_q,
        k.contiguous(),
        v.contiguous(),
        template,
        structure.bias_tiles,
        ratio,
    )
    return out, None if condition_q is None else cout


def bias_table(q: Tensor, k: Tensor, bias: WordBias, structure: Structure) -> Tensor:
    """Do as `reference.ops.bias_table` on a GPU: [streams, heads, references, tiles, text_len]."""
    return _table(
        q.contiguous(),
        k.contiguous(),
        bias.template.float().contiguous(),
        structure.bias_tiles,
        bias.ratio,
    )


@triton.jit(do_not_specialize=["references", "height", "width", "tiles", "text_len"])
def table_kernel(
    q,
    k,
    weight,
    table,
    references,
    height,
    width,
    tiles,
    text_len,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_L: tl.constexpr,
    POOLING: tl.constexpr,
):
    """A program: BLOCK_T pooling tiles of one reference and head, over the whole text."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    reference = tl.program_id(2).to(tl.int64)  # over streams
    stream = reference // tl.maximum(references, 1)
    # where there are no references one program runs, and does nothing
    tiles = tl.where(references > 0, tiles, 0)
    text_len = tl.where(references > 0, text_len, 0)
    tile = block * BLOCK_T + tl.arange(0, BLOCK_T)
    tile_columns = tl.cdiv(width, POOLING)
    top = tile // tile_columns * POOLING
    left = tile % tile_columns * POOLING
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < HEAD_DIM
    start = q + reference * height * width * (HEADS * HEAD_DIM) + head * HEAD_DIM
    pooled = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for cell in range(POOLING * POOLING):
        row = top + cell // POOLING
        column = left + cell % POOLING
        inside = ((tile < tiles) & (row < height) & (column < width))[:, None] & in_head[None, :]
        at = (row * width + column)[:, None] * (HEADS * HEAD_DIM) + channel[None, :]
        pooled += tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
    pooled = pooled * (1.0 / (POOLING * POOLING))
    for first in range(0, text_len, BLOCK_L):
        word = first + tl.arange(0, BLOCK_L)
        known = word < text_len
        at = (stream * text_len + word[None, :]) * (HEADS * HEAD_DIM) + head * HEAD_DIM
        keys = tl.load(k + at + channel[:, None], mask=known[None, :] & in_head[:, None], other=0.0)
        scores = dot(pooled, keys.to(tl.float32), tl.zeros([BLOCK_T, BLOCK_L], tl.float32))
        weights = tl.load(weight + reference * text_len + word, mask=known, other=0.0)
        biases = tl.abs(scores) * SCALE * weights[None, :]
        # [streams, heads, references, tiles, text_len]
        row_at = ((stream * HEADS + head) * references + reference % references) * tiles + tile
        at = row_at[:, None] * text_len + word[None, :]
        inside = (tile < tiles)[:, None] & known[None, :]
        tl.store(table + at, cast(biases, table.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["items", "tokens", "share", "tiles", "text_len"])
def kernel(
    q,
    k,
    v,
    table,
    bias_tiles,
    out,
    items,
    tokens,
    share,
    tiles,
    text_len,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BIASED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Sequences of queries, `share` of which share a text: seeds of a stream, or its references.

    Programs take items in turn: tiles of queries of one sequence and head.
    """
    ROW: tl.constexpr = HEADS * HEAD_DIM
    channel = tl.arange(0, BLOCK_D)
    row_tiles = tl.cdiv(tokens, BLOCK_M)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        head = item // row_tiles % HEADS
        sequence = (item // row_tiles // HEADS).to(tl.int64)
        stream = sequence // share
        first = item % row_tiles * BLOCK_M
        row = first + tl.arange(0, BLOCK_M)
        inside_m = row < tokens
        tile_at = (sequence * tokens + first) * ROW + head * HEAD_DIM
        at = tl.arange(0, BLOCK_M)[:, None] * ROW + channel[None, :]
        here = inside_m[:, None] & (channel < HEAD_DIM)[None, :]
        tile_q = tl.load(q + tile_at + at, mask=here, other=0.0)
        bias = row
        biases = table
        if BIASED:
            chosen = tl.load(bias_tiles + row, mask=inside_m, other=0).to(tl.int32)
            bias = chosen * text_len
            reference = (stream * HEADS + head) * share + sequence % share
            biases = table + reference * tiles * text_len
        unused = tl.zeros([BLOCK_M], tl.float32)
        text_at = stream * text_len * ROW + head * HEAD_DIM
        acc, _, total = over_range(
            tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
            tl.full([BLOCK_M], -float("inf"), tl.float32), unused,
            tile_q, unused, unused, k + text_at, v + text_at, biases, text_len, 0, text_len,
            SCALE, bias, inside_m, ROW, HEAD_DIM, BLOCK_D, BLOCK_N, False, BIASED, DESCRIPTORS,
            False,
        )  # fmt: skip
        result = cast(acc / total[:, None], out.dtype.element_ty)
        tl.store(out + tile_at + at, result, mask=here)


def _table(q: Tensor, k: Tensor, template: Tensor, bias_tiles: Tensor, ratio: float) -> Tensor:
    streams, references, text_len = template.shape
    _, _, heads, head_dim = q.shape
    height, width = bias_tiles.shape
    tiles = -(-height // POOLING_BLOCK) * -(-width // POOLING_BLOCK)
    table = q.new_empty((streams, heads, references, tiles, text_len))
    grid = (triton.cdiv(tiles, TILES_AT_ONCE), heads, torch.sym_max(streams * references, 1))
    launcher(table_kernel, grid)(
        q,
        k,
        template,
        table,
        references,
        height,
        width,
        tiles,
        text_len,
        **table_constants(heads, head_dim, ratio),
        num_warps=4,
    )
    return table


def table_constants(heads: int, head_dim: int, ratio: float) -> dict[str, Any]:
    """Return the table kernel's compile-time arguments."""
    return {
        "SCALE": ratio * head_dim**-0.5,
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_T": TILES_AT_ONCE,
        "BLOCK_L": 64,
        "POOLING": POOLING_BLOCK,
    }


def _launch(
    q: Tensor,
    cq: Tensor | None,
    k: Tensor,
    v: Tensor,
    template: Tensor | None,
    bias_tiles: Tensor,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    outputs = _empty(q, cq)
    _attend(q, k, v, None, bias_tiles, outputs[0])
    if cq is not None:
        frame_tokens = bias_tiles.numel()
        frames = cq.unflatten(1, (cq.shape[1] // frame_tokens, frame_tokens)).flatten(0, 1)
        table = None if template is None else _table(cq, k, template, bias_tiles, ratio)
        _attend(frames, k, v, table, bias_tiles, outputs[1])
    return outputs


def _attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, bias_tiles: Tensor, out: Tensor
) -> None:
    """Fill `out` with q's attention over k, v; q's sequences share texts evenly, in order."""
    sequences, tokens, heads, head_dim = q.shape
    name = str(q.dtype).removeprefix("torch.")
    tiles = attention_tiles("relational_cross_attention", name, head_dim, q.device)
    items = sequences * heads * triton.cdiv(tokens, tiles.block_m)
    programs = tiles.programs_per_sm * processors(q.device) or items
    launcher(kernel, (torch.sym_max(torch.sym_min(items, programs), 1),))(
        q,
        k,
        v,
        q if table is None else table,
        bias_tiles,
        out,
        items,
        tokens,
        sequences // k.shape[0],
        0 if table is None else table.shape[3],
        k.shape[1],
        **constants(heads, head_dim, tiles, table is not None),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def constants(heads: int, head_dim: int, tiles: AttentionTiles, biased: bool) -> dict[str, Any]:
    """Return the kernel's compile-time arguments."""
    return {
        "SCALE": head_dim**-0.5 * LOG2E,
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BIASED": biased,
        "DESCRIPTORS": tiles.descriptors,
    }


def _empty(q: Tensor, cq: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((0,)) if cq is None else torch.empty_like(cq)


def _plain(
    q: Tensor,
    cq: Tensor | None,
    k: Tensor,
    v: Tensor,
    template: Tensor | None,
    bias_tiles: Tensor,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    height, width = bias_tiles.shape
    rows = torch.arange(height, device=q.device) // POOLING_BLOCK
    columns = torch.arange(width, device=q.device) // POOLING_BLOCK
    across = -(-width // POOLING_BLOCK)
    tile = torch.arange(-(-height // POOLING_BLOCK) * across, device=q.device)
    pool = (rows[:, None] * across + columns) == tile[:, None, None]
    nothing = bias_tiles.new_empty((0,))
    structure = Structure(
        nothing, nothing, pool.float() / POOLING_BLOCK**2, bias_tiles, nothing, nothing, nothing
    )
    bias = None if template is None else WordBias(template, ratio)
    out, cout = ops.cross_attention(CrossAttention(q, cq, k, v, bias, structure))
    return out, q.new_empty((0,)) if cout is None else cout


_OPERATOR = operator(
    "relational_cross_attention",
    _launch,
    _plain,
    _empty,
)

"""Relational self-attention (CSAM) without a mask: video over everything, groups over themselves.

    keys, values = cat(video.k, condition.k), cat(video.v, condition.v)      # never materialised
    video_out = softmax(video.q @ keys.T / sqrt(d)) @ values
    for each reference frame r, with `frames` the frames of its group:
        out[r] = softmax(condition.q[r] @ keys[frames].T / sqrt(d)) @ values[frames]

Two key segments, so seeds share one condition stream without a copy. A work item is a tile of
queries of one head: first the video's long ones, then the groups' short ones, which fill the
tail; a tile of queries lies within one frame, and groupings are read as data. In e4m3, keys are
smoothed by their mean, queries quantized as they are loaded (`quantize_kv.py`).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lumosx_rt.kernels.numerics import LOG2E, cast, row_scale
from lumosx_rt.kernels.online_softmax import over_range
from lumosx_rt.kernels.operator import check, launcher, operator
from lumosx_rt.kernels.quantize_kv import QuantizedKV, dequantize_kv, quantize_kv
from lumosx_rt.kernels.tiles import AttentionTiles, attention_tiles, processors
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import QKV, Attended, SelfAttention
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure

_LOG2E: tl.constexpr = tl.constexpr(LOG2E)


def relational_attention(call: SelfAttention, *, e4m3: bool = False) -> Attended:
    """Compute `reference.ops.self_attention` on a GPU; with e4m3, its products in 8 bits.

    Raises ValueError on shapes it does not take.
    """
    video_out, condition_out, _ = relational_attention_lse(call, e4m3=e4m3, lse=False)
    return video_out, condition_out


def relational_attention_lse(
    call: SelfAttention, *, e4m3: bool = False, lse: bool = True
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Attend, and return the log of the video's softmax sums: float32 [batch, heads, video_tokens].

    With them attention over parts of the keys can be joined. They are empty without `lse`.
    """
    _check(call)
    video, condition, structure, _ = call
    assert video.q is not None
    q, k, v = (x.contiguous() for x in (video.q, video.k, video.v))
    cq = None if condition.q is None else condition.q.contiguous()
    ck, cv = condition.k.contiguous(), condition.v.contiguous()
    groups = (structure.group_index, structure.group_mask, structure.group_inverse)
    frame_tokens = structure.bias_tiles.numel()
    if e4m3:
        kv, ckv = quantize_kv(k, v), quantize_kv(ck, cv)
        outputs = _E4M3_OPERATOR(q, *kv, cq, *ckv, *groups, frame_tokens, lse)
    else:
        outputs = _OPERATOR(q, k, v, cq, ck, cv, *groups, frame_tokens, lse)
    return outputs[0], None if cq is None else outputs[1], outputs[2]


def group_attention(call: SelfAttention) -> Tensor:
    """Attend in groups alone: `reference.ops.grouped` on a GPU, nothing padded to a largest group.

    Raises ValueError on shapes it does not take.
    """
    _check(call)
    video, condition, structure, _ = call
    assert condition.q is not None
    tensors = (video.k, video.v, condition.q, condition.k, condition.v)
    k, v, cq, ck, cv = (x.contiguous() for x in tensors)
    groups = (structure.group_index, structure.group_mask, structure.group_inverse)
    out: Tensor = _OPERATOR(None, k, v, cq, ck, cv, *groups, structure.bias_tiles.numel(), False)[1]
    return out


def _check(call: SelfAttention) -> None:
    video, condition, structure, _ = call
    if video.k.dim() != 4:
        shape = list(video.k.shape)
        raise ValueError(f"`video.k` must have shape [batch, tokens, heads, head_dim], got {shape}")
    batch, tokens, heads, head_dim = video.k.shape
    streams, references = structure.group_inverse.shape
    frame_tokens = structure.bias_tiles.numel()
    if not streams or batch % streams:
        raise ValueError(f"`video` must hold seeds of {streams} streams, got batch {batch}")
    if tokens % frame_tokens:
        raise ValueError(f"`video` must hold frames of {frame_tokens} tokens, got {tokens}")
    axes = "[batch, tokens, heads, head_dim]"
    for name, given in (("video.q", video.q), ("video.v", video.v)):
        if given is not None:
            check(name, given, axes, video.k.shape)
    own = (streams, references * frame_tokens, heads, head_dim)
    for name, given in (("q", condition.q), ("k", condition.k), ("v", condition.v)):
        if given is not None:
            check(f"condition.{name}", given, axes.replace("batch", "streams"), own)


@triton.jit(
    do_not_specialize=[
        "items", "video_items", "video_tokens", "condition_tokens", "frame_tokens", "seeds",
        "groups", "members", "v_stride", "cv_stride",
    ]
)  # fmt: skip
def kernel(
    q,
    k,
    v,
    cq,
    ck,
    cv,
    k_scale,
    k_mean,
    v_scale,
    ck_scale,
    ck_mean,
    cv_scale,
    group_index,
    group_mask,
    group_inverse,
    out,
    cout,
    lse,
    items,
    video_items,
    video_tokens,
    condition_tokens,
    frame_tokens,
    seeds,
    groups,
    members,
    v_stride,
    cv_stride,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QUANTIZED: tl.constexpr,
    HAS_LSE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    """Programs take items in turn. Scales and means are unused unless QUANTIZED."""
    ROW: tl.constexpr = HEADS * HEAD_DIM
    channel = tl.arange(0, BLOCK_D)
    in_head = channel < HEAD_DIM
    video_tiles = tl.cdiv(video_tokens, BLOCK_M)
    frame_tiles = tl.cdiv(frame_tokens, BLOCK_M)
    references = condition_tokens // frame_tokens
    video_frames = video_tokens // frame_tokens
    key_blocks = v_stride // 128
    ckey_blocks = cv_stride // 128
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        # which queries: a tile of the video of one (seed, head), or of one reference's frame
        of_video = item < video_items
        other = item - video_items
        tile = tl.where(of_video, item % video_tiles, other % frame_tiles)
        reference = tl.where(of_video, 0, other // frame_tiles % tl.maximum(references, 1))
        which = tl.where(
            of_video, item // video_tiles, other // (frame_tiles * tl.maximum(references, 1))
        )
        head = which % HEADS
        stream = tl.where(of_video, which // HEADS // seeds, which // HEADS).to(tl.int64)
        # the video a group may name is its stream's first seed
        batch = tl.where(of_video, which // HEADS, stream * seeds).to(tl.int64)
        first = tl.where(of_video, 0, reference * frame_tokens) + tile * BLOCK_M
        last = tl.where(of_video, video_tokens, (reference + 1) * frame_tokens)
        row = first + tl.arange(0, BLOCK_M)
        video_at = batch * video_tokens * ROW + head * HEAD_DIM
        condition_at = stream * condition_tokens * ROW + head * HEAD_DIM
        # one base, and offsets that are the same for every tile: few registers
        tile_at = tl.where(of_video, video_at, condition_at) + first.to(tl.int64) * ROW
        at = tl.arange(0, BLOCK_M)[:, None] * ROW + channel[None, :]
        here = (row < last)[:, None] & in_head[None, :]
        queries = tl.where(of_video, q, cq) + tile_at
        tile_q = tl.load(queries + at, mask=here, other=0.0)

        q_step = tl.zeros([BLOCK_M], tl.float32)
        offset = q_step
        if QUANTIZED:
            wide = tile_q.to(tl.float32)
            q_step = row_scale(wide, 1)
            tile_q = cast(wide / q_step[:, None], tl.float8e4nv)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)

        # which keys: the video and all references, or the frames of the reference's group
        member_of = group_inverse + stream * references + reference
        group = tl.load(member_of, mask=other >= 0, other=0).to(tl.int32) // members
        frames = (stream * groups + group) * members
        for segment in range(tl.where(of_video, 2, members)):
            member = tl.where(of_video, 0, segment)
            frame = tl.load(group_index + frames + member).to(tl.int32)
            valid = tl.load(group_mask + frames + member) != 0
            in_video = tl.where(of_video, segment == 0, frame < video_frames)
            begin = tl.where(in_video, frame, frame - video_frames) * frame_tokens
            end = tl.where(valid, begin + frame_tokens, begin)
            begin = tl.where(of_video, 0, begin)
            whole = tl.where(in_video, video_tokens, condition_tokens)
            end = tl.where(of_video, whole, end)
            keys = tl.where(in_video, k + video_at, ck + condition_at)
            # rows of quantized values are padded to whole blocks of 128
            stride = tl.multiple_of(
                tl.where(in_video, v_stride, cv_stride), 128 if QUANTIZED else 1
            )
            scales = k_scale
            if QUANTIZED:
                sequence = tl.where(in_video, batch, stream) * HEADS + head
                per_channel = sequence * HEAD_DIM + channel
                values = tl.where(in_video, v, cv) + sequence * HEAD_DIM * stride
                blocks = tl.where(in_video, key_blocks, ckey_blocks)
                scales = tl.where(in_video, k_scale, ck_scale) + sequence * blocks
                means = tl.where(in_video, k_mean, ck_mean) + per_channel
                mean = tl.load(means, mask=in_head, other=0.0)
                # read again: registers are dearer than a cached load a segment
                wide = tl.load(queries + at, mask=here, other=0.0).to(tl.float32)
                offset = tl.sum(wide * mean[None, :], 1) * SCALE
                steps = tl.where(in_video, v_scale, cv_scale) + per_channel
                v_step = tl.load(steps, mask=in_head, other=1.0)[None, :]
                acc = acc * (1.0 / v_step)
            else:
                values = tl.where(in_video, v + video_at, cv + condition_at)
            acc, peak, total = over_range(
                acc, peak, total, tile_q, q_step, offset, keys, values, scales, stride,
                begin, end, SCALE, row, row < last, ROW, HEAD_DIM, BLOCK_D, BLOCK_N,
                QUANTIZED, False, DESCRIPTORS, WARP_SPECIALIZE,
            )  # fmt: skip
            if QUANTIZED:
                acc = acc * v_step

        result = cast(acc / total[:, None], out.dtype.element_ty)
        tl.store(tl.where(of_video, out, cout) + tile_at + at, result, mask=here)
        if HAS_LSE:
            logs = (peak + tl.log2(total)) / _LOG2E
            if QUANTIZED:
                logs = logs - 8.0 / _LOG2E
            rows = (batch * HEADS + head) * video_tokens + row
            tl.store(lse + rows, logs, mask=row < tl.where(of_video, last, 0))


def _new(
    q: Tensor | None, k: Tensor, cq: Tensor | None, lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, _ = k.shape
    nothing = k.new_empty((0,), dtype=torch.float32)
    own = nothing if q is None else torch.empty_like(q)
    condition = nothing if cq is None else torch.empty_like(cq)
    return own, condition, nothing.new_empty((batch, heads, tokens) if lse else (0,))


def _run(
    q: Tensor | None,
    cq: Tensor | None,
    kv: tuple[Tensor, Tensor],
    ckv: tuple[Tensor, Tensor],
    scales: tuple[Tensor, ...] | None,
    groups: tuple[Tensor, Tensor, Tensor],
    frame_tokens: int,
    lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _new(q, kv[0], cq, lse)
    given = cq if q is None else q
    assert given is not None
    batch, video_tokens, heads, head_dim = kv[0].shape
    streams, group_count, members = groups[0].shape
    references = groups[2].shape[1]
    name = "e4m3" if scales is not None else str(given.dtype).removeprefix("torch.")
    tiles = attention_tiles("relational_attention", name, head_dim, given.device)
    video_items = 0 if q is None else batch * heads * triton.cdiv(video_tokens, tiles.block_m)
    items = video_items
    if cq is not None:
        items += streams * heads * references * triton.cdiv(frame_tokens, tiles.block_m)
    programs = tiles.programs_per_sm * processors(given.device) or items
    launcher(kernel, (torch.sym_max(torch.sym_min(items, programs), 1),))(
        given if q is None else q,
        *kv,
        given if cq is None else cq,
        *ckv,
        *(scales or (given,) * 6),
        groups[0],
        groups[1].to(torch.uint8),
        groups[2],
        outputs[1 if q is None else 0],
        outputs[0 if cq is None else 1],
        outputs[2] if lse else given,
        items,
        video_items,
        video_tokens,
        references * frame_tokens,
        frame_tokens,
        batch // streams,
        group_count,
        members,
        kv[1].shape[-1],
        ckv[1].shape[-1],
        **constants(heads, head_dim, tiles, scales is not None, lse),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return outputs


def constants(
    heads: int, head_dim: int, tiles: AttentionTiles, quantized: bool, lse: bool
) -> dict[str, Any]:
    """Return the kernel's compile-time arguments."""
    return {
        "SCALE": head_dim**-0.5 * LOG2E,
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(32 if quantized else 16, triton.next_power_of_2(head_dim)),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "QUANTIZED": quantized,
        "HAS_LSE": lse,
        "DESCRIPTORS": tiles.descriptors,
        "WARP_SPECIALIZE": tiles.warp_specialize,
    }


def _structure(groups: tuple[Tensor, Tensor, Tensor], frame_tokens: int) -> Structure:
    """Return what self-attention reads of a structure; the rest is empty."""
    nothing = groups[0].new_empty((0,))
    frame = groups[0].new_empty((frame_tokens,))
    return Structure(nothing, nothing, nothing, frame, *groups)


def _plain(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    cq: Tensor | None,
    ck: Tensor,
    cv: Tensor,
    index: Tensor,
    mask: Tensor,
    inverse: Tensor,
    frame_tokens: int,
    lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    structure = _structure((index, mask, inverse), frame_tokens)
    logs = k.new_empty((0,), dtype=torch.float32)
    if q is None:  # what stands for the video's queries is not asked for
        call = SelfAttention(QKV(k, k, v), QKV(cq, ck, cv), structure)
        return logs.clone(), ops.grouped(call, *ops.everything(call)), logs
    out, cout = ops.self_attention(SelfAttention(QKV(q, k, v), QKV(cq, ck, cv), structure))
    if lse:  # by the slow obvious way: logits in full
        seeds = k.shape[0] // ck.shape[0]
        keys = torch.cat([k, ops.over_seeds(ck, seeds)], 1).float()
        logits = torch.einsum("bqhd,bkhd->bhqk", q.float(), keys) * q.shape[-1] ** -0.5
        logs = logits.logsumexp(-1)
    return out, k.new_empty((0,), dtype=torch.float32) if cout is None else cout, logs


def _plain_e4m3(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    k_mean: Tensor,
    v: Tensor,
    v_scale: Tensor,
    cq: Tensor | None,
    ck: Tensor,
    ck_scale: Tensor,
    ck_mean: Tensor,
    cv: Tensor,
    cv_scale: Tensor,
    index: Tensor,
    mask: Tensor,
    inverse: Tensor,
    frame_tokens: int,
    lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over the dequantized keys and values; queries and probabilities unquantized."""
    kv = dequantize_kv(QuantizedKV(k, k_scale, k_mean, v, v_scale), q.dtype)
    ckv = dequantize_kv(QuantizedKV(ck, ck_scale, ck_mean, cv, cv_scale), q.dtype)
    return _plain(q, *kv, cq, *ckv, index, mask, inverse, frame_tokens, lse)


def _launch(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    cq: Tensor | None,
    ck: Tensor,
    cv: Tensor,
    index: Tensor,
    mask: Tensor,
    inverse: Tensor,
    frame_tokens: int,
    lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = (index, mask, inverse)
    return _run(q, cq, (k, v), (ck, cv), None, groups, frame_tokens, lse)


def _launch_e4m3(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    k_mean: Tensor,
    v: Tensor,
    v_scale: Tensor,
    cq: Tensor | None,
    ck: Tensor,
    ck_scale: Tensor,
    ck_mean: Tensor,
    cv: Tensor,
    cv_scale: Tensor,
    index: Tensor,
    mask: Tensor,
    inverse: Tensor,
    frame_tokens: int,
    lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scales = (k_scale, k_mean, v_scale, ck_scale, ck_mean, cv_scale)
    groups = (index, mask, inverse)
    return _run(q, cq, (k, v), (ck, cv), scales, groups, frame_tokens, lse)


_OPERATOR = operator(
    "relational_attention",
    _launch,
    _plain,
    lambda q, k, v, cq, ck, cv, *rest: _new(q, k, cq, rest[-1]),
)
_E4M3_OPERATOR = operator(
    "relational_attention_e4m3",
    _launch_e4m3,
    _plain_e4m3,
    lambda q, k, ks, km, v, vs, cq, *rest: _new(q, k, cq, rest[-1]),
)

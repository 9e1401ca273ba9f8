"""The four operations that make LumosX what it is, in plain torch: the oracle of every kernel.

    self_attention    video over everything, each reference group over itself        (CSAM)
    cross_attention   over the text; references biased towards their words           (MCAM)
    qk_norm_rope      RMS norm over the whole width, then relational rotation        (R2PE)
    norm_modulate     residual add with gate, layer norm, modulate

An operation takes one argument object (`SelfAttention`, ...), whose docstring states its axes.
`Ops` is handed to the model; kernels, exports and calibration hand in their own. Whatever wraps an
operation passes the object on, or `call._replace(...)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lumosx_rt.reference.mechanisms.lumosx.structure import Structure


class QKV(NamedTuple):
    """Queries, keys and values, each [batch, tokens, heads, head_dim]; q is None where unused."""

    q: Tensor | None
    k: Tensor
    v: Tensor


class WordBias(NamedTuple):
    """What MCAM needs beside queries and keys.

    template: [streams, references, text_len], which prompt words a reference is bound to.
    ratio: the strength of the bias.
    """

    template: Tensor
    ratio: float


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Rotate = Callable[[Tensor, Tensor], Tensor]
Attended = tuple[Tensor, Tensor | None]
"""What an attention makes of the video's queries, and of the references' where there are any."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, scale 1/sqrt(head_dim), on [batch, tokens, heads, head_dim] tensors."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x [batch, tokens, heads, head_dim] by the angles whose
    cosine and sine are rope [2, batch or 1, tokens, pairs], in the table's dtype."""
    cosine, sine = rope.unsqueeze(3)
    even, odd = x.to(rope.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return pairs.flatten(-2).to(x.dtype)


class SelfAttention(NamedTuple):
    """A call of self-attention.

    video: [streams * seeds, video_tokens, heads, head_dim]. Its queries see its own keys and its
    stream's condition keys.
    condition: [streams, reference_tokens, heads, head_dim]. Its queries see their group. They may
    be None.
    structure: the groups, read as data.
    site: the place in the model, such as `blocks.3.self`.
    """

    video: QKV
    condition: QKV
    structure: Structure
    site: str = ""


def self_attention(call: SelfAttention, attend: Attend = attend) -> Attended:
    """Attend without a mask over the sequence (docs/spec.md#csam).

    Returns video and condition attended, in the shapes of their keys; None for condition without
    queries.
    """
    keys, values = everything(call)
    assert call.video.q is not None
    video_out = attend(call.video.q, keys, values, None)
    if call.condition.q is None:
        return video_out, None
    return video_out, grouped(call, keys, values, attend)


def everything(call: SelfAttention) -> tuple[Tensor, Tensor]:
    """Return the keys and values that the video sees: its own, then its stream's condition's."""
    video, condition, *_ = call
    seeds = video.k.shape[0] // condition.k.shape[0]
    keys = torch.cat([video.k, over_seeds(condition.k, seeds)], dim=1)
    return keys, torch.cat([video.v, over_seeds(condition.v, seeds)], dim=1)


def grouped(call: SelfAttention, keys: Tensor, values: Tensor, attend: Attend = attend) -> Tensor:
    """Attend in groups: the condition's queries over `everything` of their group.

    A group may name video frames (of the stream's first seed): that is how "everything sees
    everything" and "no references" are said with the same tensors.
    """
    video, condition, structure, _ = call
    assert video.q is not None and condition.q is not None
    streams = condition.k.shape[0]
    queries = torch.cat([_first_seed(video.q, streams), condition.q], dim=1)
    frame_tokens = structure.bias_tiles.numel()
    q, k, v = (
        _gather_frames(x, structure.group_index, frame_tokens)
        for x in (queries, _first_seed(keys, streams), _first_seed(values, streams))
    )
    mask = structure.group_mask.flatten(0, 1)[:, None, None, :, None]
    mask = mask.expand(-1, 1, 1, -1, frame_tokens).flatten(3)
    out = attend(q, k, v, mask)  # [streams * groups, members * frame_tokens, heads, head_dim]
    out = out.reshape(streams, -1, *out.shape[-2:])
    return _gather_frames(out, structure.group_inverse[:, None], frame_tokens).reshape(
        condition.q.shape
    )


class CrossAttention(NamedTuple):
    """A call of cross-attention.

    video_q: [streams * seeds, video_tokens, heads, head_dim].
    condition_q: [streams, reference_tokens, heads, head_dim], or None.
    k, v: [streams, text_len, heads, head_dim], of the text.
    bias: which words each reference is biased towards, or None.
    structure: the pooling tiles, read as data.
    site: the place in the model, such as `blocks.3.cross`.
    """

    video_q: Tensor
    condition_q: Tensor | None
    k: Tensor
    v: Tensor
    bias: WordBias | None
    structure: Structure
    site: str = ""


def cross_attention(call: CrossAttention, attend: Attend = attend) -> Attended:
    """Attend over the text: plainly for the video, biased towards their words for references.

    Returns both attended, in the queries' shapes (docs/spec.md#mcam).
    """
    video_q, condition_q, k, v, bias, structure, _ = call
    seeds = video_q.shape[0] // k.shape[0]
    video_out = attend(video_q, over_seeds(k, seeds), over_seeds(v, seeds), None)
    if condition_q is None:
        return video_out, None
    if bias is None:
        return video_out, attend(condition_q, k, v, None)
    table = bias_table(condition_q, k, bias, structure)
    return video_out, attend(condition_q, k, v, unrolled(table, structure.bias_tiles))


def bias_table(q: Tensor, k: Tensor, bias: WordBias, structure: Structure) -> Tensor:
    """MCAM as a tiny table: ratio * |pooled q . k| / sqrt(head_dim) * template (docs/spec.md#mcam).

    q: [streams, reference_tokens, heads, head_dim], k: [streams, text_len, heads, head_dim]
    -> [streams, heads, references, tiles, text_len] in q's dtype.
    """
    pool = structure.tile_pool.flatten(1)
    wide = torch.promote_types(q.dtype, torch.float32)
    frames = q.to(wide).unflatten(1, (bias.template.shape[1], pool.shape[1]))
    pooled = torch.einsum("tp,snphd->shntd", pool.to(wide), frames)
    scores = torch.einsum("shntd,slhd->shntl", pooled, k.to(wide)) * q.shape[-1] ** -0.5
    template = bias.template[:, None, :, None, :].to(wide)
    return (bias.ratio * scores.abs() * template).to(q.dtype)


def unrolled(table: Tensor, bias_tiles: Tensor) -> Tensor:
    """Return the bias of every reference token: [streams, heads, references * H * W, text_len]."""
    return table.index_select(3, bias_tiles.flatten()).flatten(2, 3)


class QkNormRope(NamedTuple):
    """A call of the norm and rotation of queries or keys.

    x: [batch, tokens, heads * head_dim].
    weight: [heads * head_dim], or None: no norm.
    rope: [2, batch or 1, tokens, pairs], cosine and sine, or None: no rotation.
    """

    x: Tensor
    weight: Tensor | None
    rope: Tensor | None
    heads: int
    eps: float


def qk_norm_rope(call: QkNormRope, rotate: Rotate = rotate) -> Tensor:
    """Norm over the whole width, split into heads, rotate adjacent channel pairs.

    The rotation is computed in the dtype of its tables. Returns [batch, tokens, heads, head_dim] in
    x's dtype (docs/spec.md#block, #r2pe).
    """
    x, weight, rope, heads, eps = call
    if weight is not None:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        x = F.rms_norm(wide, x.shape[-1:], eps=eps).to(x.dtype) * weight.to(x.dtype)
    x = x.unflatten(-1, (heads, -1))
    return x if rope is None else rotate(x, rope)


class NormModulate(NamedTuple):
    """A call of the gated residual sum, norm and modulation.

    x: [batch, tokens, dim], the residual stream.
    delta: [batch, tokens, dim], or None: nothing is added.
    gate: [batch or 1, 1, dim] or [dim], or None: 1.
    scale, shift: [batch or 1, 1, dim] or [dim], or None: y = x, no norm. scale is the whole factor,
    1 + the modulation.
    dtype: of y.
    """

    x: Tensor
    delta: Tensor | None
    gate: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    eps: float
    dtype: torch.dtype


def norm_modulate(call: NormModulate) -> tuple[Tensor, Tensor]:
    """Compute x <- x + gate * delta;  y = LayerNorm(x) * scale + shift (docs/spec.md#block).

    Returns x, and y in `dtype`.
    """
    x, delta, gate, scale, shift, eps, dtype = call
    if delta is not None:
        x = x + (delta if gate is None else delta * gate)
    y = x
    if scale is not None:
        assert shift is not None
        y = F.layer_norm(x, x.shape[-1:], eps=eps) * scale + shift
    return x, y.to(dtype)


def over_seeds(x: Tensor, seeds: int) -> Tensor:
    """Return what a stream's seeds share: [streams, ...] -> [streams * seeds, ...], without a copy
    yet."""
    return x.unsqueeze(1).expand(-1, seeds, *x.shape[1:]).flatten(0, 1)


def _first_seed(x: Tensor, streams: int) -> Tensor:
    return x.unflatten(0, (streams, -1))[:, 0]


def _gather_frames(x: Tensor, index: Tensor, frame_tokens: int) -> Tensor:
    """Frames of each stream: x [streams, frames * frame_tokens, ...], index [streams, rows, m]

    -> [streams * rows, m * frame_tokens, ...].
    """
    frames = x.unflatten(1, (-1, frame_tokens))
    offset = torch.arange(x.shape[0], device=x.device)[:, None, None] * frames.shape[1]
    picked = frames.flatten(0, 1).index_select(0, (index + offset).flatten())
    return picked.unflatten(0, (index.shape[0] * index.shape[1], index.shape[2])).flatten(1, 2)


SelfAttentionOp = Callable[[SelfAttention], Attended]
CrossAttentionOp = Callable[[CrossAttention], Attended]


@dataclass(frozen=True)
class Ops:
    """The four operations that a model runs on, each a function of one argument object."""

    self_attention: SelfAttentionOp = self_attention
    cross_attention: CrossAttentionOp = cross_attention
    qk_norm_rope: Callable[[QkNormRope], Tensor] = qk_norm_rope
    norm_modulate: Callable[[NormModulate], tuple[Tensor, Tensor]] = norm_modulate


REFERENCE = Ops()

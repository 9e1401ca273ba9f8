"""The operations as the release spends its time: eager, one small step after the other.

Written from the formulas (docs/spec.md#block), with the costs of the released model: a call of
attention for the video and one for each group, with copies in between; rotary positions looked up
and turned into complex128 in every block; a cross-attention bias for every token of the sequence,
the video's zeros included; every norm a handful of operations.
"""

import torch
from torch import Tensor

from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import (
    Attended,
    CrossAttention,
    Ops,
    QkNormRope,
    SelfAttention,
    attend,
)
from lumosx_rt.reference.mechanisms.lumosx.layout import ROPE_TABLE, SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import rope_axes


class AsReleased:
    """Operations of one stream and seed; references and frames differ in number, which tells
    whose tokens these are."""

    def __init__(self, layout: SceneLayout, head_dim: int, device: torch.device) -> None:
        assert layout.references != layout.video_frames
        self.layout = layout
        self.positions = torch.from_numpy(layout.positions).long().to(device)
        self.tables = [table.to(device) for table in rotary_tables(rope_axes(head_dim))]

    def ops(self) -> Ops:
        return Ops(self.self_attention, cross_attention, self.qk_norm_rope, ops.norm_modulate)

    def self_attention(self, call: SelfAttention) -> Attended:
        assert call.video.q is not None and call.condition.q is not None
        q, k, v = (
            torch.cat([x, c], 1)
            for x, c in zip(call.video, call.condition, strict=True)
            if x is not None and c is not None
        )
        ranges = self.layout.attention_ranges
        out = torch.cat([attend(q[:, a:b], k[:, c:d], v[:, c:d]) for (a, b), (c, d) in ranges], 1)
        return out[:, : self.layout.video_tokens], out[:, self.layout.video_tokens :]

    def qk_norm_rope(self, call: QkNormRope) -> Tensor:
        x, weight, rope, heads, eps = call
        if weight is not None:
            wide = x.float()
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
            x = wide.type_as(x) * weight
        x = x.unflatten(-1, (heads, -1))
        if rope is None:
            return x
        video = self.layout.video_tokens
        own = self.positions[:video] if x.shape[1] == video else self.positions[video:]
        angles = [table[own[:, axis]] for axis, table in enumerate(self.tables)]
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
        turned = pairs * torch.cat(angles, -1)[:, None]
        return torch.view_as_real(turned).flatten(-2).type_as(x)


def rotary_tables(axes: tuple[int, int, int]) -> list[Tensor]:
    """Unit complex numbers of every position on the time, row and column axes: complex128."""
    tables = []
    for size in axes:
        step = 1.0 / 10000.0 ** (torch.arange(0, 2 * size, 2, dtype=torch.float64) / (2 * size))
        angle = torch.arange(ROPE_TABLE, dtype=torch.float64)[:, None] * step
        tables.append(torch.polar(torch.ones_like(angle), angle))
    return tables


def cross_attention(call: CrossAttention) -> Attended:
    """Attend over the whole sequence at once, with a float32 bias [tokens, heads, text] for it."""
    video_q, condition_q, k, v, bias, structure, _ = call
    assert condition_q is not None and bias is not None
    q = torch.cat([video_q, condition_q], 1)
    batch, tokens, heads, _ = q.shape
    video = video_q.shape[1]
    table = ops.bias_table(condition_q, k, bias, structure)
    per_token = table[:, :, :, structure.bias_tiles.flatten()].flatten(2, 3)
    added = q.new_zeros((batch, tokens, heads, k.shape[1]), dtype=torch.float32)
    added[:, video:] = per_token.transpose(1, 2)
    out = attend(q, k, v, added.transpose(1, 2).to(q.dtype))
    return out[:, :video], out[:, video:]

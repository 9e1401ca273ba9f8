"""Ways to do relational self-attention, chosen by name; an explicit choice never falls back.

triton                 our kernel, one launch                     (relational_attention.py)
hybrid[:BACKEND]       the rectangle on torch's own attention, the groups on our kernel
split-sdpa[:BACKEND]   both on torch's own; groups are padded to the largest, and masked
flex                   FlexAttention over the whole sequence with a block mask
reference              the oracle

BACKEND is flash, cudnn, efficient or math; without one torch picks. A backend is called by name on
a GPU, so a program that is exported keeps it: a context that asks for one is not part of a program.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lumosx_rt.kernels.relational_attention import group_attention, relational_attention
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import (
    QKV,
    Attend,
    Attended,
    SelfAttention,
    SelfAttentionOp,
)
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_ATEN = torch.ops.aten
_BY_NAME = {  # q, k, v [batch, heads, tokens, head_dim] -> what attends, first
    "flash": lambda q, k, v: _ATEN._scaled_dot_product_flash_attention(q, k, v),
    "cudnn": lambda q, k, v: _ATEN._scaled_dot_product_cudnn_attention(q, k, v, None, False),
    "efficient": lambda q, k, v: _ATEN._scaled_dot_product_efficient_attention(
        q, k, v, None, False
    ),
    "math": lambda q, k, v: _ATEN._scaled_dot_product_attention_math(q, k, v),
}
WITH_BACKENDS = ("hybrid", "split-sdpa")
NAMES = (
    "triton",
    *(f"{way}{of}" for way in WITH_BACKENDS for of in ("", *(f":{name}" for name in BACKENDS))),
    "flex",
    "reference",
)


def self_attention(name: str) -> SelfAttentionOp:
    """Return the implementation of that name. Raises ValueError for a name that is none."""
    if name not in NAMES:
        raise ValueError(f"self-attention: got '{name}', accepted are {', '.join(NAMES)}")
    if name == "triton":
        return relational_attention
    if name == "flex":
        return FlexSelfAttention()
    if name == "reference":
        return ops.self_attention
    way, _, backend = name.partition(":")
    attend = partial(_attend, backend) if backend else ops.attend
    return partial(_hybrid if way == "hybrid" else ops.self_attention, attend=attend)


def _hybrid(call: SelfAttention, attend: Attend) -> Attended:
    assert call.video.q is not None
    video_out = attend(call.video.q, *ops.everything(call), None)
    return video_out, None if call.condition.q is None else group_attention(call)


def _attend(backend: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`ops.attend`; what has no mask, on one backend. Groups are masked, as few backends can."""
    if mask is not None:
        return ops.attend(q, k, v, mask)
    if q.device.type == "cpu":  # which has other functions of these names
        with sdpa_kernel(BACKENDS[backend]):
            return ops.attend(q, k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out: Tensor = _BY_NAME[backend](q, k, v)[0]
    return out.transpose(1, 2)


class FlexSelfAttention:
    """FlexAttention, compiled on a GPU. The block mask is made once for a structure and kept."""

    def __init__(self) -> None:
        self._compiled = torch.compile(flex_attention, dynamic=False)
        self._mask: tuple[Tensor, int, BlockMask] | None = None

    def __call__(self, call: SelfAttention) -> Attended:
        video, condition, structure, _ = call
        assert video.q is not None
        streams = condition.k.shape[0]
        seeds = video.k.shape[0] // streams
        # pruned queries are computed too: a sequence has one length
        own = QKV(condition.k if condition.q is None else condition.q, condition.k, condition.v)
        q, k, v = (
            torch.cat([x, ops.over_seeds(c, seeds)], 1).transpose(1, 2)
            for x, c in zip(video, own, strict=True)
            if x is not None and c is not None
        )
        mask = self._block_mask(structure, video.k.shape[1], seeds)
        attend = self._compiled if q.is_cuda else flex_attention
        out = attend(q, k, v, block_mask=mask).transpose(1, 2)
        video_out, condition_out = out.split([video.k.shape[1], condition.k.shape[1]], 1)
        if condition.q is None:
            return video_out, None
        return video_out, condition_out.unflatten(0, (streams, seeds))[:, 0]

    def _block_mask(self, structure: Structure, video_tokens: int, seeds: int) -> BlockMask:
        if self._mask is not None:
            index, its_seeds, mask = self._mask
            if index is structure.group_index and its_seeds == seeds:
                return mask
        frame_tokens = structure.bias_tiles.numel()
        sees = frame_visibility(structure, video_tokens // frame_tokens)
        streams, frames, _ = sees.shape

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return sees[batch // seeds, query // frame_tokens, key // frame_tokens]

        tokens, device = frames * frame_tokens, str(sees.device)
        mask = create_block_mask(visible, streams * seeds, None, tokens, tokens, device)
        self._mask = (structure.group_index, seeds, mask)
        return mask


def frame_visibility(structure: Structure, video_frames: int) -> Tensor:
    """Return which frame sees which: bool [streams, frames, frames], the video's frames first."""
    streams, references = structure.group_inverse.shape
    groups, members = structure.group_index.shape[1:]
    frames = video_frames + references
    # frames of each group, then of each reference's group
    named = F.one_hot(structure.group_index, frames).bool() & structure.group_mask[..., None]
    group = structure.group_inverse // members
    own = named.any(2).gather(1, group[..., None].expand(-1, -1, frames))
    everything = own.new_ones((streams, video_frames, frames))
    return torch.cat([everything, own], 1)

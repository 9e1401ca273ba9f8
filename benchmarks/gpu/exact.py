"""Both attentions in float64, for sampled queries against all keys."""

import torch
from torch import Tensor

from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import CrossAttention, SelfAttention
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout


def visibility(layout: SceneLayout, queries: Tensor) -> Tensor:
    """Which tokens these queries see: [n] -> bool [n, tokens]."""
    seen = queries.new_zeros((len(queries), layout.tokens), dtype=torch.bool)
    for (a, b), (c, d) in layout.attention_ranges:
        seen[:, c:d] |= ((queries >= a) & (queries < b))[:, None]
    return seen


def self_attention_rows(
    call: SelfAttention, layouts: list[SceneLayout], video_rows: Tensor, own_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend for chosen tokens of the video and of the references.

    -> [batch, chosen, heads, head_dim], [streams, chosen, heads, head_dim].
    """
    video, condition = call.video, call.condition
    seeds = video.k.shape[0] // len(layouts)
    of_video, of_references = [], []
    assert video.q is not None and condition.q is not None
    for entry in range(video.k.shape[0]):
        stream, seed = divmod(entry, seeds)
        layout = layouts[stream]
        keys = torch.cat([video.k[entry], condition.k[stream]]).double()
        values = torch.cat([video.v[entry], condition.v[stream]]).double()
        seen = visibility(layout, video_rows)
        of_video.append(_attend(video.q[entry, video_rows], keys, values, seen))
        if seed == 0:
            seen = visibility(layout, own_rows + layout.video_tokens)
            of_references.append(_attend(condition.q[stream, own_rows], keys, values, seen))
    return torch.stack(of_video), torch.stack(of_references)


def cross_attention_rows(
    call: CrossAttention, video_rows: Tensor, own_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend over the text for chosen tokens, in the shapes of `self_attention_rows`."""
    video_q, condition_q, k, v, bias, structure, _ = call
    assert condition_q is not None and bias is not None
    streams = k.shape[0]
    seeds = video_q.shape[0] // streams
    table = ops.bias_table(condition_q.double(), k.double(), bias, structure)
    frame, place = own_rows // structure.bias_tiles.numel(), own_rows % structure.bias_tiles.numel()
    tile = structure.bias_tiles.flatten()[place]
    of_video, of_references = [], []
    for entry in range(video_q.shape[0]):
        stream, seed = divmod(entry, seeds)
        keys, values = k[stream].double(), v[stream].double()
        of_video.append(_attend(video_q[entry, video_rows], keys, values))
        if seed == 0:
            added = table[stream][:, frame, tile]
            queries = condition_q[stream, own_rows]
            of_references.append(_attend(queries, keys, values, added=added))
    return torch.stack(of_video), torch.stack(of_references)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    """q [n, heads, d] on k, v [tokens, heads, d]; seen [n, tokens], added [heads, n, tokens]."""
    logits = torch.einsum("nhd,thd->hnt", q.double(), k) * q.shape[-1] ** -0.5
    if added is not None:
        logits += added
    if seen is not None:
        logits.masked_fill_(~seen, -float("inf"))
    return torch.einsum("hnt,thd->nhd", logits.softmax(-1), v)

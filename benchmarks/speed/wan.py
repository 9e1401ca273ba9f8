"""Plain Wan2.1 as diffusers runs it, with our weights: what the same transformer costs that knows
no references."""

from typing import Any

import torch
from torch import Tensor

from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints.key_names import transformer_to_diffusers
from lumosx_rt.reference.mechanisms.lumosx.layout import ROPE_TABLE


def wan_of(model: LumosX) -> Any:
    """diffusers' WanTransformer3DModel of these sizes and weights, which it shares."""
    from diffusers import WanTransformer3DModel

    config = model.config
    build: Any = WanTransformer3DModel
    with torch.device("meta"):
        wan = build(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            in_channels=config.in_dim,
            out_channels=config.out_dim,
            text_dim=config.text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            cross_attn_norm=config.cross_attn_norm,
            eps=config.eps,
            rope_max_seq_len=ROPE_TABLE,
        )
    rope = type(wan.rope)(config.head_dim, wan.config.patch_size, ROPE_TABLE)
    wan.load_state_dict(
        {transformer_to_diffusers(name): x for name, x in model.state_dict().items()}, assign=True
    )
    wan.rope = rope  # its tables are no weights, so they stayed on "meta"
    return wan.eval().requires_grad_(False)


def velocity(wan: Any, latents: Tensor, time: int, text: Tensor) -> Tensor:
    """latents: [1, seeds, channels, frames, rows, columns]; text: [1, text_len, text_dim]."""
    clips = latents.flatten(0, 1)
    out: Tensor = wan(
        clips,
        torch.full((len(clips),), time),
        text.expand(len(clips), -1, -1),
        return_dict=False,
    )[0]
    return out.unflatten(0, latents.shape[:2])

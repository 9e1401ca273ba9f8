"""The LumosX transformer, written once (docs/spec.md#tokens to #block). Parameter names are the
released checkpoint's.

Two token tensors run side by side: `video` [streams * seeds, video_tokens, dim] and `condition`
[streams, reference_tokens, dim]; a stream is one (request, guidance branch). References never see
the video, so all seeds of a stream share its condition tokens, and the last block needs only
their keys and values.

Mixed precision as released: linears and attention in `dtype`; the residual stream, norms, gates,
time embedding, modulation and head in float32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumosx_rt.reference.backbones.config import PATCH, LumosXConfig
from lumosx_rt.reference.backbones.ops import (
    QKV,
    REFERENCE,
    CrossAttention,
    NormModulate,
    Ops,
    QkNormRope,
    SelfAttention,
    WordBias,
    over_seeds,
)
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure

MAX_TIME = 1000
Residual = tuple[Tensor, Tensor | None, Tensor | None]  # x, and a gated delta still to be added


class LumosX(nn.Module):
    """A velocity model of latent video, conditioned on text and reference images."""

    def __init__(
        self, config: LumosXConfig, dtype: torch.dtype = torch.float32, ops: Ops = REFERENCE
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.ops = config, dtype, ops
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, PATCH, PATCH, dtype=dtype)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim, dtype=dtype),
            nn.GELU(approximate="tanh"),
            nn.Linear(dim, dim, dtype=dtype),
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            Block(config, dtype, f"blocks.{i}") for i in range(config.num_layers)
        )
        self.head = Head(config)
        self.register_buffer("time_table", time_sinusoid(config.freq_dim), persistent=False)

    def forward(
        self,
        latents: Tensor,
        time: Tensor,
        text: Tensor,
        references: Tensor,
        template: Tensor,
        structure: Structure,
        *,
        keep_references: bool = False,
    ) -> Tensor:
        """Velocity of the video latents.

        latents: [streams, seeds, channels, frames, rows, columns], noisy.
        time: int64 [streams], 0..1000.
        text: [streams, text_len, text_dim], zero-padded.
        references: [streams, references, channels, rows, columns], clean latents.
        template: [streams, references, text_len], the words each reference is bound to.
        Returns latents' shape; with `keep_references`, the references' frames appended in time.
        """
        streams, seeds = latents.shape[:2]
        size = latents.shape[-2:]
        x = self.patchify(latents.flatten(0, 1).transpose(1, 2))
        c = self.patchify(references)

        table: Tensor = self.get_buffer("time_table")
        e = self.time_embedding(table[time])
        e0 = self.time_projection(e).unflatten(1, (6, -1))
        text = self.text_embedding(text.to(self.dtype))
        bias = WordBias(template, self.config.mcam_ratio) if self.config.mcam_ratio else None
        ropes = (
            structure.rope_video.flatten(1, 3).unsqueeze(1),
            structure.rope_references.flatten(2, 4),
        )
        per_seed = over_seeds(e0, seeds)
        video: Residual = (x, None, None)
        condition: Residual = (c, None, None)
        *blocks, last = self.blocks
        shared = (ropes, text, bias, structure, self.ops)
        for block in blocks:
            video, condition = block(video, condition, (per_seed, e0), *shared, False)
        video, left = last(video, condition, (per_seed, e0), *shared, not keep_references)

        frames = structure.rope_video.shape[1]
        out = self.head(video, over_seeds(e, seeds), self.ops)
        out = self.unpatchify(out, frames, size).unflatten(0, (streams, seeds))
        if left is None:
            return out
        kept = self.unpatchify(self.head(left, e, self.ops), references.shape[1], size)
        return torch.cat([out, kept.unsqueeze(1).expand(-1, seeds, -1, -1, -1, -1)], dim=3)

    def patchify(self, frames: Tensor) -> Tensor:
        """Turn [batch, frames, channels, rows, columns] into tokens [batch, tokens, dim], float32.

        Odd sizes are padded with one zero row below, one zero column to the right
        (docs/spec.md#tokens).
        """
        rows, columns = frames.shape[-2:]
        if rows % 2 or columns % 2:
            frames = F.pad(frames, (0, columns % 2, 0, rows % 2))
        patches = frames.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # b f c h y w x
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
        weight = self.patch_embedding.weight.flatten(1)
        tokens = F.linear(patches.to(self.dtype), weight, self.patch_embedding.bias)
        return tokens.to(torch.promote_types(tokens.dtype, torch.float32))

    def unpatchify(self, tokens: Tensor, frames: int, size: torch.Size) -> Tensor:
        """Tokens [batch, tokens, 4 * channels] -> [batch, channels, frames, rows, columns]."""
        rows, columns = size
        grid = (frames, (rows + 1) // 2, (columns + 1) // 2, 2, 2, self.config.out_dim)
        out = tokens.unflatten(1, grid[:3]).unflatten(-1, grid[3:])  # b f h w y x c
        out = out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)
        return out[..., :rows, :columns] if rows % 2 or columns % 2 else out


class Modulation(NamedTuple):
    """Six rows of a block's modulation, each [batch, 1, dim]: attention's, then the MLP's."""

    shift_a: Tensor
    scale_a: Tensor
    gate_a: Tensor
    shift_f: Tensor
    scale_f: Tensor
    gate_f: Tensor


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, on both token tensors."""

    def __init__(self, config: LumosXConfig, dtype: torch.dtype, site: str) -> None:
        super().__init__()
        self.eps, self.dtype, self.site = config.eps, dtype, site
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = Attention(config, dtype)
        self.cross_attn = Attention(config, dtype)
        self.norm3 = nn.LayerNorm(config.dim, config.eps) if config.cross_attn_norm else None
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim, dtype=dtype),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim, dtype=dtype),
        )

    def forward(
        self,
        video: Residual,
        condition: Residual,
        e0: tuple[Tensor, Tensor],
        ropes: tuple[Tensor, Tensor],
        text: Tensor,
        bias: WordBias | None,
        structure: Structure,
        ops: Ops,
        prune: bool,
    ) -> tuple[Residual, Residual | None]:
        """Run one block on both token tensors; with `prune`, condition gives keys and values
        only."""
        video_mod, condition_mod = (
            Modulation(*(self.modulation + e).unsqueeze(2).unbind(1)) for e in e0
        )
        video_rope, condition_rope = ropes
        attn, cross = self.self_attn, self.cross_attn

        x, y = self.modulated(video, video_mod, ops)
        video_qkv = attn.qkv(y, video_rope, ops)
        c, y = self.modulated(condition, condition_mod, ops)
        condition_qkv = attn.qkv(y, condition_rope, ops, queries=not prune)
        video_out, condition_out = ops.self_attention(
            SelfAttention(video_qkv, condition_qkv, structure, f"{self.site}.self")
        )

        x, video_q = self.text_query(x, video_out, video_mod, ops)
        condition_q = None
        if condition_out is not None:
            c, condition_q = self.text_query(c, condition_out, condition_mod, ops)
        k, v = cross.project(text, "k", None, ops), cross.project(text, "v", None, ops)
        video_out, condition_out = ops.cross_attention(
            CrossAttention(video_q, condition_q, k, v, bias, structure, f"{self.site}.cross")
        )

        video = self.mlp(x, video_out, video_mod, ops)
        if condition_out is None:
            return video, None
        return video, self.mlp(c, condition_out, condition_mod, ops)

    def modulated(self, state: Residual, mod: Modulation, ops: Ops) -> tuple[Tensor, Tensor]:
        """X with what was pending, and LN(X) * (1 + scale) + shift."""
        return ops.norm_modulate(
            NormModulate(*state, 1 + mod.scale_a, mod.shift_a, self.eps, self.dtype)
        )

    def text_query(
        self, x: Tensor, attended: Tensor, mod: Modulation, ops: Ops
    ) -> tuple[Tensor, Tensor]:
        """X <- X + gate * SelfAttn; queries of cross-attention from LN_affine(X)."""
        scale, shift = (None, None) if self.norm3 is None else (self.norm3.weight, self.norm3.bias)
        delta = self.self_attn.output(attended)
        x, y = ops.norm_modulate(
            NormModulate(x, delta, mod.gate_a, scale, shift, self.eps, self.dtype)
        )
        return x, self.cross_attn.project(y, "q", None, ops)

    def mlp(self, x: Tensor, attended: Tensor, mod: Modulation, ops: Ops) -> Residual:
        """X <- X + CrossAttn; X <- X + gate * MLP(LN(X) * (1 + scale) + shift), left pending."""
        delta = self.cross_attn.output(attended)
        scale = 1 + mod.scale_f
        x, y = ops.norm_modulate(
            NormModulate(x, delta, None, scale, mod.shift_f, self.eps, self.dtype)
        )
        return x, self.ffn(y), mod.gate_f


class Attention(nn.Module):
    """The projections around an attention op."""

    def __init__(self, config: LumosXConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.eps = config.num_heads, config.eps
        self.q, self.k, self.v, self.o = (
            nn.Linear(config.dim, config.dim, dtype=dtype) for _ in range(4)
        )
        self.norm_q = nn.RMSNorm(config.dim, config.eps, dtype=dtype) if config.qk_norm else None
        self.norm_k = nn.RMSNorm(config.dim, config.eps, dtype=dtype) if config.qk_norm else None

    def project(self, y: Tensor, which: str, rope: Tensor | None, ops: Ops) -> Tensor:
        """Project to one of q, k, v: [batch, tokens, dim] -> [batch, tokens, heads, head_dim]."""
        x: Tensor = getattr(self, which)(y)
        if which == "v":
            return x.unflatten(-1, (self.heads, -1))
        norm = self.norm_q if which == "q" else self.norm_k
        weight = None if norm is None else norm.weight
        return ops.qk_norm_rope(QkNormRope(x, weight, rope, self.heads, self.eps))

    def qkv(self, y: Tensor, rope: Tensor, ops: Ops, queries: bool = True) -> QKV:
        return QKV(
            self.project(y, "q", rope, ops) if queries else None,
            self.project(y, "k", rope, ops),
            self.project(y, "v", None, ops),
        )

    def output(self, attended: Tensor) -> Tensor:
        out: Tensor = self.o(attended.flatten(2))
        return out


class Head(nn.Module):
    """Norm, modulation and the projection to latent patches, in float32."""

    def __init__(self, config: LumosXConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = nn.Linear(config.dim, config.out_dim * PATCH[1] * PATCH[2])

    def forward(self, state: Residual, e: Tensor, ops: Ops) -> Tensor:
        shift, scale = (self.modulation + e.unsqueeze(1)).chunk(2, dim=1)
        _, y = ops.norm_modulate(NormModulate(*state, 1 + scale, shift, self.eps, state[0].dtype))
        out: Tensor = self.head(y)
        return out


def time_sinusoid(freq_dim: int) -> Tensor:
    """Return the time embedding's input for every t in 0..1000: float32 [1001, freq_dim]
    (docs/spec.md#time).

    t is an integer, so a table is exact, and graphs need no float64.
    """
    time = torch.arange(MAX_TIME + 1, dtype=torch.float64, device="cpu")
    half = torch.arange(freq_dim // 2, dtype=torch.float64, device="cpu") / (freq_dim // 2)
    angle = time[:, None] * 10000.0**-half
    return torch.cat([angle.cos(), angle.sin()], dim=1).float()

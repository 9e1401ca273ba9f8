"""Keys and values in e4m3, as attention's matrix units want them.

mean = k.mean(tokens)                            # softmax does not see what all keys share,
d = k - mean                                     # and without it e4m3 resolves the rest better
k_scale = d[block of 128 tokens].abs().amax() / 448;   k8 = (d / k_scale).to(e4m3)
v_scale = v.abs().amax(tokens) / 448                   # a scale for every channel
v8 = (v / v_scale).to(e4m3), stored [.., channels, tokens]   # Hopper multiplies along tokens
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lumosx_rt.kernels.numerics import E4M3_MAX, cast
from lumosx_rt.kernels.operator import launcher, operator

KEY_BLOCK = 128  # keys that share a scale; attention's key tiles divide it
_KEY_BLOCK: tl.constexpr = tl.constexpr(KEY_BLOCK)


class QuantizedKV(NamedTuple):
    """k [batch, tokens, heads, head_dim] and v [batch, heads, head_dim, tokens up to whole blocks]
    in e4m3; k_scale [batch, heads, blocks], k_mean and v_scale [batch, heads, head_dim], float32.
    There is a block of zeros where there are no tokens.
    """

    k: Tensor
    k_scale: Tensor
    k_mean: Tensor
    v: Tensor
    v_scale: Tensor


def quantize_kv(k: Tensor, v: Tensor) -> QuantizedKV:
    """Keys and values [batch, tokens, heads, head_dim] for `relational_attention` in e4m3."""
    return QuantizedKV(*_OPERATOR(k.contiguous(), v.contiguous()))


def plain(k: Tensor, v: Tensor) -> QuantizedKV:
    """Do as `quantize_kv` in torch."""
    tokens = k.shape[1]
    pad = _blocks(tokens) * KEY_BLOCK - tokens
    mean, v_scale = _statistics(k, v)
    centred = k.float() - mean.unsqueeze(1)
    padded = torch.nn.functional.pad(centred, (0, 0, 0, 0, 0, pad))
    amax = padded.unflatten(1, (-1, KEY_BLOCK)).abs().amax((2, 4))  # [batch, blocks, heads]
    k_scale = amax.clamp_min(1e-12) * (1.0 / E4M3_MAX)
    k8 = _to_e4m3(centred / k_scale.repeat_interleave(KEY_BLOCK, 1)[:, :tokens, :, None])
    v8 = _to_e4m3(v.float() / v_scale.unsqueeze(1)).view(torch.uint8)
    v8 = torch.nn.functional.pad(v8.permute(0, 2, 3, 1), (0, pad)).contiguous()
    k_scale = k_scale.transpose(1, 2).contiguous()
    return QuantizedKV(k8, k_scale, mean, v8.view(torch.float8_e4m3fn), v_scale)


def dequantize_kv(kv: QuantizedKV, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the keys (mean put back) and values that attention in e4m3 works with, as `k`, `v`
    were."""
    tokens = kv.k.shape[1]
    scale = kv.k_scale.transpose(1, 2).repeat_interleave(KEY_BLOCK, 1)[:, :tokens, :, None]
    k = kv.k.to(dtype) * scale.to(dtype) + kv.k_mean.to(dtype).unsqueeze(1)
    v = kv.v[..., :tokens].to(dtype) * kv.v_scale.to(dtype).unsqueeze(-1)
    return k, v.permute(0, 3, 1, 2)


def _statistics(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of keys and scale of values, over tokens: two float32 [batch, heads, head_dim]."""
    if not k.shape[1]:
        zeros = k.new_zeros((k.shape[0], *k.shape[2:]), dtype=torch.float32)
        return zeros, zeros + 1e-12 / E4M3_MAX
    amax = torch.maximum(v.amax(1), -v.amin(1)).float()
    return k.mean(1, dtype=torch.float32), amax.clamp_min(1e-12) * (1.0 / E4M3_MAX)


def _to_e4m3(x: Tensor) -> Tensor:
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


@triton.jit(do_not_specialize=["tokens", "blocks"])
def statistics_kernel(
    k,
    v,
    k_sum,
    v_amax,
    tokens,
    blocks,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program: one block of tokens of one head; where there are no tokens, zeros."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    token = block * _KEY_BLOCK + tl.arange(0, _KEY_BLOCK)
    channel = tl.arange(0, BLOCK_D)
    inside = (token < tokens)[:, None] & (channel < HEAD_DIM)[None, :]
    at = (batch * tokens + token[:, None]) * (HEADS * HEAD_DIM) + head * HEAD_DIM
    at = at + channel[None, :]
    keys = tl.load(k + at, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(v + at, mask=inside, other=0.0).to(tl.float32)
    row = ((batch * blocks + block) * HEADS + head) * HEAD_DIM + channel
    tl.store(k_sum + row, tl.sum(keys, 0), mask=channel < HEAD_DIM)
    tl.store(v_amax + row, tl.max(tl.abs(values), 0), mask=channel < HEAD_DIM)


@triton.jit(do_not_specialize=["tokens", "blocks"])
def kernel(
    k,
    v,
    k_mean,
    v_scale,
    k8,
    k_scale,
    v8,
    tokens,
    blocks,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program: one block of tokens of one head."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    token = block * _KEY_BLOCK + tl.arange(0, _KEY_BLOCK)
    channel = tl.arange(0, BLOCK_D)
    known = channel < HEAD_DIM
    inside = (token < tokens)[:, None] & known[None, :]
    at = (batch * tokens + token[:, None]) * (HEADS * HEAD_DIM) + head * HEAD_DIM
    at = at + channel[None, :]
    per_channel = (batch * HEADS + head) * HEAD_DIM + channel

    mean = tl.load(k_mean + per_channel, mask=known, other=0.0)
    centred = tl.load(k + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
    centred = tl.where(inside, centred, 0.0)
    step = tl.maximum(tl.max(tl.max(tl.abs(centred), 1), 0), 1e-12) * (1.0 / 448.0)
    tl.store(k_scale + (batch * HEADS + head) * blocks + block, step)
    tl.store(k8 + at, cast(centred / step, tl.float8e4nv), mask=inside)

    steps = tl.load(v_scale + per_channel, mask=known, other=1.0)
    values = tl.load(v + at, mask=inside, other=0.0).to(tl.float32) / steps[None, :]
    row = per_channel[None, :] * (blocks * _KEY_BLOCK) + token[:, None]
    tl.store(v8 + row, cast(values, tl.float8e4nv), mask=known[None, :])


def _blocks(tokens: int) -> int:
    """Return how many blocks there are of so many tokens, at least one.

    Strides of an axis that may be empty are sizes that Inductor cannot order.
    """
    blocks: int = torch.sym_max(-(-tokens // KEY_BLOCK), 1)
    return blocks


def _empty(k: Tensor, v: Tensor) -> QuantizedKV:
    batch, tokens, heads, head_dim = k.shape
    blocks = _blocks(tokens)
    e4m3, f32 = torch.float8_e4m3fn, torch.float32
    return QuantizedKV(
        k.new_empty(k.shape, dtype=e4m3),
        k.new_empty((batch, heads, blocks), dtype=f32),
        k.new_empty((batch, heads, head_dim), dtype=f32),
        k.new_empty((batch, heads, head_dim, blocks * KEY_BLOCK), dtype=e4m3),
        k.new_empty((batch, heads, head_dim), dtype=f32),
    )


def _launch(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, heads, head_dim = k.shape
    out = _empty(k, v)
    blocks = out.k_scale.shape[2]
    grid = (blocks, heads, batch)
    sizes, arguments = (tokens, blocks), constants(heads, head_dim)
    sums, amax = k.new_empty((2, batch, blocks, heads, head_dim), dtype=torch.float32)
    launcher(statistics_kernel, grid)(k, v, sums, amax, *sizes, **arguments, num_warps=4)
    mean = sums.sum(1) / torch.sym_max(tokens, 1)
    v_scale = amax.amax(1).clamp_min(1e-12) * (1.0 / E4M3_MAX)
    out = out._replace(k_mean=mean, v_scale=v_scale)
    launcher(kernel, grid)(
        k, v, mean, v_scale, out.k, out.k_scale, out.v, *sizes, **arguments, num_warps=4
    )
    return out


def constants(heads: int, head_dim: int) -> dict[str, int]:
    """Return the kernel's compile-time arguments."""
    return {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
    }


_OPERATOR = operator(
    "quantize_kv",
    _launch,
    plain,
    _empty,
)

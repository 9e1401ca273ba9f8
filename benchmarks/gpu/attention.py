"""Stage attention: self-attention by every implementation, over 0 to 16 references.

triton, triton e4m3          our kernel; in e4m3 with the quantization of keys and values
triton e4m3, quantized       ... and without it
hybrid[:BACKEND], split-sdpa, flex   as `kernels/self_attention.py` names them
groups: triton, split-sdpa   the groups alone
dense mask                   one SDPA call with a bool mask over the whole sequence
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import exact
from benchmarks.gpu.cases import Bench, Case, timed
from benchmarks.gpu.problem import Problem, Way
from benchmarks.gpu.scale import Scale, layouts_of
from lumosx_rt.kernels import quantize_kv as quantization
from lumosx_rt.kernels.relational_attention import group_attention, relational_attention
from lumosx_rt.kernels.self_attention import BACKENDS, frame_visibility, self_attention
from lumosx_rt.reference.backbones import cost as roofline
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import QKV, Attended, SelfAttention
from lumosx_rt.reference.mechanisms.lumosx.structure import structure_of

# math writes whole tables of logits, which fit nothing at full size
STOCK = ("split-sdpa", "hybrid", *(f"hybrid:{name}" for name in BACKENDS if name != "math"))
WAYS = (
    "triton",
    "triton e4m3",
    "triton e4m3, quantized",
    *STOCK,
    "flex",
    "dense mask",
)
GROUPS = ("groups: triton", "groups: split-sdpa")
BY_NAME = ("triton", *STOCK, "flex")
HALF = torch.bfloat16


def cases(bench: Bench) -> Iterator[Case]:
    for key in bench.scale.keys(0, 1, 4, 8, 16):
        yield from timed(bench, WAYS, key, problem, (key,), 1, HALF)
        yield from timed(bench, ["quantize_kv"], key, quantization_problem, (key,), 1, HALF)
    for key in bench.scale.keys(4, 16):
        yield from timed(bench, GROUPS, key, group_problem, (key,), 1, HALF)


def inputs(scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype) -> SelfAttention:
    """Draw queries, keys and values of the video and the references, a stream for each layout."""
    layouts, config, noise = layouts_of(keys), scale.config, scale.noise()
    first = layouts[0]
    heads = (config.num_heads, config.head_dim)
    references = first.tokens - first.video_tokens
    video, condition = (
        QKV(*(noise(batch, tokens, *heads, dtype=dtype) for _ in range(3)))
        for batch, tokens in ((len(keys) * seeds, first.video_tokens), (len(keys), references))
    )
    structure = structure_of(layouts, config.head_dim).to(scale.device)
    return SelfAttention(video, condition, structure)


def problem(scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype) -> Problem:
    """Relational self-attention of streams with these layouts, each with so many seeds.

    Work is that of one stream and seed, as timings are.
    """
    layouts = layouts_of(keys)
    call = inputs(scale, keys, seeds, dtype)
    rows = [scale.sample(x.k.shape[1]) for x in (call.video, call.condition)]
    half, e4m3 = (
        roofline.self_attention(layouts[0], scale.config, kind) for kind in ("half", "e4m3")
    )
    ways = {name: Way(partial(self_attention(name), call), "split-sdpa", half) for name in BY_NAME}
    ways["dense mask"] = Way(_DenseMask(call), "split-sdpa", half)
    ways["triton e4m3"] = Way(partial(relational_attention, call, e4m3=True), "plain e4m3", e4m3)
    ways["triton e4m3, quantized"] = Way(_Quantized(call), "plain e4m3", e4m3)
    ways["plain e4m3"] = Way(partial(plain_e4m3, call), "plain e4m3")
    return Problem(
        scale.device,
        partial(exact.self_attention_rows, call, layouts, *rows),
        partial(picked, rows=rows),
        ways,
    )


def group_problem(scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype) -> Problem:
    """The references of streams with these layouts, each over its group."""
    call = inputs(scale, keys, seeds, dtype)
    layouts = layouts_of(keys)
    rows = [scale.sample(x.k.shape[1]) for x in (call.video, call.condition)]
    video = layouts[0].video_tokens
    grouped = layouts[0].attended_pairs - video * layouts[0].tokens
    work = roofline.Work({"half": 4.0 * scale.config.dim * grouped})

    def exactly() -> tuple[Tensor, ...]:
        return exact.self_attention_rows(call, layouts, *rows)[1:]

    def stock() -> Tensor:
        return ops.grouped(call, *ops.everything(call))

    ways = {
        "groups: triton": Way(partial(group_attention, call), "groups: split-sdpa", work),
        "groups: split-sdpa": Way(stock, "groups: split-sdpa", work),
    }
    return Problem(scale.device, exactly, lambda out: (out[:, rows[1]],), ways)


def picked(output: Any, rows: list[Tensor]) -> tuple[Tensor, ...]:
    """Chosen tokens of the video and of the references."""
    return tuple(part[:, chosen] for part, chosen in zip(output, rows, strict=False))


def plain_e4m3(call: SelfAttention) -> Attended:
    """Attend in plain torch over keys and values that went through e4m3."""
    video, condition = (
        QKV(x.q, *quantization.dequantize_kv(quantization.plain(x.k, x.v), x.k.dtype))
        for x in (call.video, call.condition)
    )
    return ops.self_attention(call._replace(video=video, condition=condition))


class _Quantized:
    """Our kernel in e4m3 on keys and values that are quantized once, before."""

    def __init__(self, call: SelfAttention) -> None:
        self.arguments = cache(partial(self._arguments, call))

    def __call__(self) -> Any:
        return torch.ops.lumosx.relational_attention_e4m3(*self.arguments())[:2]

    @staticmethod
    def _arguments(call: SelfAttention) -> tuple[Any, ...]:
        video, condition, structure, _ = call
        kv, own = (quantization.quantize_kv(x.k, x.v) for x in (video, condition))
        groups = (structure.group_index, structure.group_mask, structure.group_inverse)
        return (video.q, *kv, condition.q, *own, *groups, structure.bias_tiles.numel(), False)


class _DenseMask:
    """One call over the whole sequence; the mask is made once, before."""

    def __init__(self, call: SelfAttention) -> None:
        self.video, self.condition, self.structure, _ = call
        self.mask = cache(self._mask)

    def __call__(self) -> tuple[Tensor, ...]:
        seeds = self.video.k.shape[0] // self.condition.k.shape[0]
        q, k, v = (
            torch.cat([x, ops.over_seeds(c, seeds)], 1).transpose(1, 2)
            for x, c in zip(self.video, self.condition, strict=True)
            if x is not None and c is not None
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask()).transpose(1, 2)
        video, condition = out.split([self.video.k.shape[1], self.condition.k.shape[1]], 1)
        return video, condition[::seeds]

    def _mask(self) -> Tensor:
        frame = self.structure.bias_tiles.numel()
        frames = self.video.k.shape[1] // frame
        sees = frame_visibility(self.structure, frames)
        tokens = sees.repeat_interleave(frame, 1).repeat_interleave(frame, 2)
        seeds = self.video.k.shape[0] // self.condition.k.shape[0]
        return ops.over_seeds(tokens, seeds)[:, None]


def quantization_problem(
    scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype
) -> Problem:
    """Keys and values of the video and the references through e4m3 and back."""
    video, condition, *_ = inputs(scale, keys, seeds, dtype)
    rows = [scale.sample(x.k.shape[1]) for x in (video, condition)]

    def run(quantize: Any) -> Any:
        return [quantize(x.k, x.v) for x in (video, condition)]

    def pick(output: Any) -> tuple[Tensor, ...]:
        back = [quantization.dequantize_kv(kv, torch.float64) for kv in output]
        return tuple(x[:, own] for kv, own in zip(back, rows, strict=True) for x in kv)

    def given() -> tuple[Tensor, ...]:
        pairs = zip((video, condition), rows, strict=True)
        return tuple(x[:, own].double() for part, own in pairs for x in (part.k, part.v))

    tokens = sum(x.k.shape[0] * x.k.shape[1] for x in (video, condition))
    ways = {
        "quantize_kv": Way(
            partial(run, quantization.quantize_kv),
            "plain",
            roofline.quantize_kv(tokens, scale.config.dim),
        ),
        "plain": Way(partial(run, quantization.plain), "plain"),
    }
    return Problem(scale.device, given, pick, ways)

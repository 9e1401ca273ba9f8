"""Stage cross: cross-attention with a bias from a table, against a bias made for every token."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu import as_released, exact
from benchmarks.gpu.attention import HALF, inputs, picked
from benchmarks.gpu.cases import Bench, Case, timed
from benchmarks.gpu.problem import Problem, Way
from benchmarks.gpu.scale import Scale, layouts_of
from lumosx_rt.kernels import relational_cross_attention as kernels
from lumosx_rt.reference.backbones import cost as roofline
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import CrossAttention, WordBias
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure

WAYS = ("triton", "reference", "as released")


def cases(bench: Bench) -> Iterator[Case]:
    for key in bench.scale.keys(4, 16):
        yield from timed(bench, WAYS, key, problem, (key,), 1, HALF)


def text_of(
    scale: Scale, keys: tuple[str, ...], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, WordBias]:
    """Random keys and values of a text for each stream, and words each reference is bound to."""
    config, noise = scale.config, scale.noise(1)
    shape = (len(keys), config.text_len, config.num_heads, config.head_dim)
    k, v = (noise(*shape, dtype=dtype) for _ in range(2))
    references = layouts_of(keys)[0].references
    words = noise(len(keys), references, config.text_len)
    # one word in ten is its own, one in ten another's
    template = (words > 1.3).float() - 0.5 * (words < -1.3).float()
    return k, v, WordBias(template, config.mcam_ratio)


def problem(scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype) -> Problem:
    """Cross-attention of streams with these layouts, each with so many seeds."""
    video, condition, structure, _ = inputs(scale, keys, seeds, dtype)
    assert video.q is not None and condition.q is not None
    k, v, bias = text_of(scale, keys, dtype)
    rows = [scale.sample(x.shape[1]) for x in (video.q, condition.q)]
    call = CrossAttention(video.q, condition.q, k, v, bias, structure)
    work = roofline.cross_attention(layouts_of(keys)[0], scale.config)
    ways = {
        name: Way(partial(function, call), "reference", work)
        for name, function in (
            ("triton", kernels.relational_cross_attention),
            ("reference", ops.cross_attention),
            ("as released", as_released.cross_attention),
        )
    }
    expected = partial(exact.cross_attention_rows, call, *rows)
    return Problem(scale.device, expected, partial(picked, rows=rows), ways)


def table_problem(scale: Scale, keys: tuple[str, ...], dtype: torch.dtype) -> Problem:
    """The bias table alone."""
    _, condition, structure, _ = inputs(scale, keys, 1, dtype)
    assert condition.q is not None
    k, _, bias = text_of(scale, keys, dtype)
    q = condition.q

    def table(q: torch.Tensor, k: torch.Tensor, made: Structure) -> tuple[torch.Tensor, ...]:
        return (ops.bias_table(q, k, bias, made),)

    ways = {
        "triton": Way(lambda: (kernels.bias_table(q, k, bias, structure),), "reference"),
        "reference": Way(partial(table, q, k, structure), "reference"),
    }
    expected = partial(table, q.double(), k.double(), structure)
    return Problem(scale.device, expected, tuple, ways)

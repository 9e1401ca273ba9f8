"""Stage rows: what is bound by memory, in TB/s: our row kernels, eager torch, and torch.compile."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.attention import HALF
from benchmarks.gpu.book import Row
from benchmarks.gpu.cases import Bench, Case, timed
from benchmarks.gpu.problem import Problem, Way
from benchmarks.gpu.scale import Scale, layouts_of
from benchmarks.gpu.timing import time_of
from lumosx_rt.kernels import norm_modulate as norms
from lumosx_rt.kernels import qk_norm_rope as ropes
from lumosx_rt.kernels.linear_fp8 import GeluQuantize
from lumosx_rt.kernels.norm_modulate import QuantizedRows, quantize_rows
from lumosx_rt.reference.backbones import cost as roofline
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import NormModulate, QkNormRope
from lumosx_rt.reference.mechanisms.lumosx.structure import structure_of

WAYS = ("triton", "eager", "compiled")
Tensors = tuple[Tensor, ...]


def cases(bench: Bench) -> Iterator[Case]:
    for key in bench.scale.keys(0, 16):
        yield Case("copy", key, partial(_copy, bench.scale, key))
        for op, build in PROBLEMS.items():
            ways = [f"{op}: {way}" for way in WAYS]
            yield from timed(bench, ways, key, build, (key,), 1, HALF)


def _copy(scale: Scale, key: str) -> Row:
    """What the machine itself reaches: a copy of the residual stream."""
    source = scale.noise()(layouts_of((key,))[0].tokens, scale.config.dim)
    target = torch.empty_like(source)
    taken = time_of(lambda: target.copy_(source), scale.device)
    return taken | roofline.copy(source.numel()).rates(sum(taken["ms"]) / 2)


def norm_problem(
    scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype, *, quantized: bool = False
) -> Problem:
    """Residual, gate, norm and modulation of all tokens of these layouts."""
    op = "norm_modulate" + ", quantized" * quantized
    noise, config = scale.noise(), scale.config
    batch, tokens, dim = len(keys) * seeds, layouts_of(keys)[0].tokens, config.dim
    x, delta = noise(batch, tokens, dim), noise(batch, tokens, dim, dtype=dtype)
    gate, scaling, shift = (noise(batch, 1, dim) for _ in range(3))
    rows = scale.sample(tokens)
    wanted = torch.float32 if quantized else dtype
    call = NormModulate(x, delta, gate, 1 + scaling, shift, config.eps, wanted)

    ours = norms.norm_modulate_quantized if quantized else norms.norm_modulate

    def plain(call: NormModulate) -> Any:
        x, y = ops.norm_modulate(call)
        return x, quantize_rows(y) if quantized else y

    def exact() -> Tensors:
        wide_gate, scale_, shift_ = (part.double() for part in (gate, 1 + scaling, shift))
        here, added = x[:, rows].double(), delta[:, rows].double()
        wide_call = NormModulate(here, added, wide_gate, scale_, shift_, config.eps, torch.float64)
        return ops.norm_modulate(wide_call)

    def pick(output: Any) -> Tensors:
        return output[0][:, rows], wide(output[1], rows)

    work = roofline.norm_modulate(batch * tokens, dim, quantized)
    return Problem(scale.device, exact, pick, _ways(scale, op, ours, plain, call, work))


def rope_problem(scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype) -> Problem:
    """Norm and rotation of queries or keys, streams with rotary tables of their own."""
    noise, config = scale.noise(), scale.config
    layouts = layouts_of(keys)
    tokens = layouts[0].tokens
    x, weight = noise(len(keys), tokens, config.dim, dtype=dtype), noise(config.dim, dtype=dtype)
    structure = structure_of(layouts, config.head_dim).to(scale.device)
    video = structure.rope_video.flatten(1, 3)[:, None].expand(-1, len(keys), -1, -1)
    rope = torch.cat([video, structure.rope_references.flatten(2, 4)], 2)
    rows = scale.sample(tokens)
    call = QkNormRope(x, weight, rope, config.num_heads, config.eps)

    def exact() -> Tensors:
        own = (x[:, rows].double(), weight.double(), rope[:, :, rows].double())
        return (ops.qk_norm_rope(QkNormRope(*own, config.num_heads, config.eps)),)

    def pick(output: Tensor) -> Tensors:
        return (output[:, rows],)

    work = roofline.qk_norm_rope(len(keys) * tokens, config.dim, config.head_dim)
    ways = _ways(scale, "qk_norm_rope", ropes.qk_norm_rope, ops.qk_norm_rope, call, work)
    return Problem(scale.device, exact, pick, ways)


def gelu_problem(scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype) -> Problem:
    """The MLP's activation, quantized."""
    tokens, dim = len(keys) * layouts_of(keys)[0].tokens, scale.config.ffn_dim
    x, rows = scale.noise()(tokens, dim, dtype=dtype), scale.sample(tokens)

    def plain(x: Tensor) -> QuantizedRows:
        return quantize_rows(F.gelu(x.float(), approximate="tanh"))

    def exact() -> Tensors:
        return (F.gelu(x[rows].double(), approximate="tanh"),)

    def pick(output: QuantizedRows) -> Tensors:
        return (wide(output, rows, 0),)

    work = roofline.gelu_quantize(tokens, dim)
    ways = _ways(scale, "gelu_quantize", GeluQuantize(), plain, x, work)
    return Problem(scale.device, exact, pick, ways)


def wide(output: Tensor | QuantizedRows, rows: Tensor, axis: int = 1) -> Tensor:
    """Chosen rows in float64, dequantized."""
    if isinstance(output, Tensor):
        return output.index_select(axis, rows).double()
    # indexing knows no 8-bit floats everywhere
    values = output.values.view(torch.uint8).index_select(axis, rows).view(torch.float8_e4m3fn)
    return values.double() * output.scale.index_select(axis, rows).double()


def _ways(
    scale: Scale,
    op: str,
    ours: Callable[..., Any],
    plain: Callable[..., Any],
    call: Any,
    work: roofline.Work,
) -> dict[str, Way]:
    functions = (ours, plain, scale.compiled(plain))
    return {
        f"{op}: {way}": Way(partial(function, call), f"{op}: eager", work)
        for way, function in zip(WAYS, functions, strict=True)
    }


def quantized_norm_problem(
    scale: Scale, keys: tuple[str, ...], seeds: int, dtype: torch.dtype
) -> Problem:
    return norm_problem(scale, keys, seeds, dtype, quantized=True)


PROBLEMS = {
    "norm_modulate": norm_problem,
    "norm_modulate, quantized": quantized_norm_problem,
    "qk_norm_rope": rope_problem,
    "gelu_quantize": gelu_problem,
}

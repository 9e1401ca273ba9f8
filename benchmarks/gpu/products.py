"""Stage products: matrix products of the linear layers, in bf16 and in e4m3 with both scalings.

Inputs are quantized before. `qkv` is what one product for queries, keys and values would be.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.attention import HALF
from benchmarks.gpu.cases import Bench, Case, timed
from benchmarks.gpu.problem import Problem, Way
from benchmarks.gpu.scale import Scale, layouts_of
from lumosx_rt.kernels.linear_fp8 import LinearFp8, scaled_product
from lumosx_rt.kernels.norm_modulate import QuantizedRows, quantize_rows
from lumosx_rt.kernels.numerics import E4M3_MAX
from lumosx_rt.reference.backbones import cost as roofline
from lumosx_rt.reference.backbones.config import LumosXConfig

WAYS = ("bf16", "e4m3 row-wise", "e4m3 row-wise, exact sums", "e4m3 tensor-wise")


def cases(bench: Bench) -> Iterator[Case]:
    for key in bench.scale.keys(0, 16):
        for layer in layers(bench.scale.config):
            ways = [f"{layer}: {way}" for way in WAYS]
            yield from timed(bench, ways, key, problem, key, layer, HALF)


def layers(config: LumosXConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a block's products."""
    dim, ffn = config.dim, config.ffn_dim
    return {"q": (dim, dim), "qkv": (dim, 3 * dim), "up": (dim, ffn), "down": (ffn, dim)}


def problem(scale: Scale, key: str, layer: str, dtype: torch.dtype) -> Problem:
    """One layer on all tokens of a layout, against the product of unquantized operands."""
    linear, x, rows = _given(scale, key, layer, dtype)
    tokens, (inputs, outputs) = len(x), layers(scale.config)[layer]
    half, e4m3 = (roofline.linear(tokens, inputs, outputs, kind) for kind in ("half", "e4m3"))
    row_wise = LinearFp8(linear).to(scale.device)
    amax = float(x.abs().amax())
    tensor_wise = LinearFp8(linear, amax / E4M3_MAX, "tensor").to(scale.device)
    by_row, by_tensor = quantize_rows(x), _whole(x, amax / E4M3_MAX)
    ways = {"bf16": Way(partial(F.linear, x, linear.weight, linear.bias), f"{layer}: bf16", half)}
    for name, module, given in (
        ("e4m3 row-wise", row_wise, by_row),
        ("e4m3 tensor-wise", tensor_wise, by_tensor),
    ):
        own = (module.weight, given.scale, module.weight_scale, module.bias, dtype)
        ways[name] = Way(
            partial(scaled_product, given.values, *own), f"{layer}: plain {name}", e4m3
        )
        if module is row_wise:
            slow = partial(scaled_product, given.values, *own, fast_sums=False)
            ways[f"{name}, exact sums"] = Way(slow, f"{layer}: plain {name}", e4m3)
        plain = partial(in_float32, module, given)
        ways[f"plain {name}"] = Way(plain, f"{layer}: plain {name}")

    def exact() -> tuple[Tensor, ...]:
        return (_product(x[rows], linear.weight, linear.bias),)

    named = {f"{layer}: {name}": way for name, way in ways.items()}
    return Problem(scale.device, exact, lambda y: (y[rows],), named)


def quantized_problem(scale: Scale, key: str, layer: str, dtype: torch.dtype) -> Problem:
    """`LinearFp8` on quantized rows, against the float64 product of the same 8-bit numbers."""
    linear, x, rows = _given(scale, key, layer, dtype)
    module, given = LinearFp8(linear).to(scale.device), quantize_rows(x)

    def exact() -> tuple[Tensor, ...]:
        values = given.values.float()[rows].double() * given.scale[rows].double()
        weight = module.weight.double() * module.weight_scale.double().T
        return (_product(values, weight, module.bias),)

    ways = {
        "linear_fp8": Way(partial(module, given), "plain"),
        "plain": Way(partial(in_float32, module, given), "plain"),
    }
    return Problem(scale.device, exact, lambda y: (y[rows],), ways)


def in_float32(module: LinearFp8, x: QuantizedRows) -> Tensor:
    """The product of 8-bit numbers, accumulated in float32."""
    out = x.values.float() @ module.weight.float().T * x.scale * module.weight_scale
    return (out if module.bias is None else out + module.bias).to(module.dtype)


def _given(
    scale: Scale, key: str, layer: str, dtype: torch.dtype
) -> tuple[nn.Linear, Tensor, Tensor]:
    """A random layer, its input, and the sampled rows."""
    noise = scale.noise()
    inputs, outputs = layers(scale.config)[layer]
    linear = nn.Linear(inputs, outputs, dtype=dtype, device=scale.device).requires_grad_(False)
    linear.weight.copy_(noise(outputs, inputs) * inputs**-0.5)
    linear.bias.copy_(noise(outputs))
    (layout,) = layouts_of((key,))
    return linear, noise(layout.tokens, inputs, dtype=dtype), scale.sample(layout.tokens)


def _whole(x: Tensor, step: float) -> QuantizedRows:
    """x with one scale."""
    values = (x.float() / step).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return QuantizedRows(values, x.new_full((1, 1), step, dtype=torch.float32))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x.double() @ weight.double().T
    return out if bias is None else out + bias.double()

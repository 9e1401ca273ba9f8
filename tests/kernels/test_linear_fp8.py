"""Linear layers in e4m3: against float64 on the same quantized operands."""

import pytest
import torch
from torch import nn

from lumosx_rt.kernels.linear_fp8 import GeluQuantize, LinearFp8, quantize_mlp
from lumosx_rt.kernels.norm_modulate import QuantizedRows, quantize_rows
from tests.helpers.budget import assert_same_codes, assert_within_budget, relative
from tests.kernels.cases import HALF, random


def linear(inside: int = 48, outside: int = 32, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inside, outside, bias=bias)
    layer.weight.data = random(outside, inside, seed=1) * torch.linspace(0.1, 9, outside)[:, None]
    if bias:
        layer.bias.data = random(outside, seed=2)
    return layer.bfloat16()


@pytest.mark.parametrize("bias", [True, False])
def test_row_wise(bias: bool) -> None:
    layer, x = linear(bias=bias), random(2, 5, 48, seed=3, dtype=torch.bfloat16)
    x[0, 0] *= 100  # rows of very different size
    fp8 = LinearFp8(layer)
    rows = quantize_rows(x)
    weight = fp8.weight.double() * fp8.weight_scale.double().T
    same_operands = (rows.values.double() * rows.scale.double()) @ weight.T
    exact = x.double() @ layer.weight.double().T
    if bias:
        same_operands, exact = (y + layer.bias.double() for y in (same_operands, exact))
    out = fp8(x)
    assert out.dtype == torch.bfloat16 and out.shape == exact.shape
    assert relative(out, same_operands) < 3e-3  # the output's own rounding
    assert 3e-3 < relative(out, exact) < 0.06  # e4m3 is really used, and no worse than it is
    assert torch.equal(fp8(rows), out)


def test_tensor_wise_with_a_calibrated_scale() -> None:
    layer, x = linear(), random(3, 48, seed=3, dtype=torch.bfloat16)
    scale = float(x.abs().max()) / 448
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    assert relative(LinearFp8(layer, input_scale=scale)(x), exact) < 0.06
    clipped = LinearFp8(layer, input_scale=scale / 8)(x)  # control: saturation is felt
    assert relative(clipped, exact) > 0.3
    with pytest.raises(ValueError, match="calibrated input scale"):
        LinearFp8(layer, input_scale=scale)(quantize_rows(x))


def test_sizes_the_matrix_units_do_not_take() -> None:
    with pytest.raises(ValueError, match="multiples of 16, got 40 -> 32"):
        LinearFp8(nn.Linear(40, 32))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gelu_into_e4m3(dtype: torch.dtype) -> None:
    x = random(2, 3, 80, seed=1, dtype=dtype) * 3
    rows = GeluQuantize()(x)
    assert isinstance(rows, QuantizedRows) and rows.values.shape == x.shape
    wide = x.double()
    exact = wide / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    amax = exact.abs().amax(-1, keepdim=True)
    plain = quantize_rows(nn.functional.gelu(x.float(), approximate="tanh"))
    assert_within_budget("scale", rows.scale, plain.scale, amax / 448)
    assert_same_codes("rows", rows.values, plain.values, exact / amax * 448)
    allowed = 2 * relative(plain.values.double() * plain.scale.double(), exact)
    assert relative(rows.values.double() * rows.scale.double(), exact) <= allowed < 0.1


def test_a_whole_mlp() -> None:
    mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 32))
    mlp = mlp.bfloat16()
    x = random(2, 7, 32, seed=1, dtype=torch.bfloat16)
    exact = mlp.double()(x.double())
    mlp.bfloat16()
    assert 3e-3 < relative(quantize_mlp(mlp)(x), exact.detach()) < 0.08
    with pytest.raises(ValueError, match="GELU in its tanh form"):
        quantize_mlp(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)))

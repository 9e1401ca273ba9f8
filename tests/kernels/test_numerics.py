"""Casts and dots in the interpreter, against torch's own."""

import pytest
import torch
import triton
import triton.language as tl

from lumosx_rt.kernels.numerics import INTERPRETED, TRITON_TYPES, cast, dot
from tests.helpers.budget import assert_within_budget
from tests.kernels.cases import random


@triton.jit
def cast_kernel(x, out, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, cast(tl.load(x + at), TYPE))


@triton.jit
def dot_kernel(a, b, out, SIZE: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    at = row * SIZE + column
    tl.store(out + at, dot(tl.load(a + at), tl.load(b + at), tl.zeros([SIZE, SIZE], tl.float32)))


def test_kernels_are_interpreted_here() -> None:
    assert INTERPRETED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_casts_round_as_torch_does(dtype: torch.dtype) -> None:
    every_bfloat16 = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = torch.cat([every_bfloat16.float(), random(1 << 14, seed=1) * 30])
    between = torch.nextafter(values.bfloat16().float(), torch.tensor(torch.inf))
    values = torch.cat([values, between, values.bfloat16().float() * (1 + 2**-8)])
    # the interpreter's own cast to bfloat16 garbles subnormals, which nothing here produces
    values = values[values.isfinite() & ((values == 0) | (values.abs() >= 2**-126))]
    if dtype == torch.float8_e4m3fn:
        values = values.clamp(-448, 448)  # torch makes NaN of what e4m3 cannot hold
    elif dtype == torch.float16:
        values = values[values.abs() < 65504]
    values = values[: values.numel() // 1024 * 1024]
    out = torch.empty(values.shape, dtype=dtype)
    cast_kernel[(values.numel() // 1024,)](values, out, TRITON_TYPES[dtype], 1024)
    assert torch.equal(out.float(), values.to(dtype).float())


def test_e4m3_saturates() -> None:
    values = torch.tensor([1e9, -1e9, 449.0, -500.0] * 4)
    out = torch.empty(16, dtype=torch.float8_e4m3fn)
    cast_kernel[(1,)](values, out, tl.float8e4nv, 16)
    assert out.float().abs().eq(448).all()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str
)
def test_dot_accumulates_in_float32(dtype: torch.dtype) -> None:
    a, b = (random(32, 32, seed=i).to(dtype) for i in (1, 2))
    out = torch.empty(32, 32)
    dot_kernel[(1,)](a, b, out, 32)
    assert_within_budget("a @ b", out, a.float() @ b.float(), a.double() @ b.double())

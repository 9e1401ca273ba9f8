"""Casts and dots that are right on a GPU and in Triton's interpreter alike.

The interpreter (TRITON_INTERPRET=1, set before this is imported) multiplies bfloat16 wrongly,
truncates where it casts to bfloat16, and loses the carry where it casts to e4m3. There, operands
are widened first and values rounded by their bits; on a GPU both are the plain instruction.
"""

import torch
import triton
import triton.language as tl

from lumosx_rt.kernels.qdq import E4M3_MAX as E4M3_MAX

INTERPRETED: bool = triton.knobs.runtime.interpret
LOG2E = 1.4426950408889634

TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
}
_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_E4M3_MAX: tl.constexpr = tl.constexpr(E4M3_MAX)


@triton.jit
def dot(a, b, acc):
    """acc + a @ b, accumulated in float32; float32 operands count in full (three tf32 products)."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32x3")


@triton.jit
def cast(x, TYPE: tl.constexpr):
    """float32 -> TYPE, to nearest even; e4m3 saturates."""
    if _INTERPRETED:
        if TYPE == tl.bfloat16:
            x = _round_to_bfloat16(x)
        elif TYPE == tl.float8e4nv:
            x = _round_to_e4m3(x)
    return x.to(TYPE)


@triton.jit
def row_scale(x, axis: tl.constexpr):
    """What divides float32 x into e4m3's range along `axis`: amax / 448, never zero."""
    return tl.maximum(tl.max(tl.abs(x), axis), 1e-12) * (1.0 / _E4M3_MAX)


@triton.jit
def _round_to_bfloat16(x):
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _round_to_e4m3(x):
    x = tl.minimum(tl.maximum(x, -_E4M3_MAX), _E4M3_MAX)
    exponent = ((x.to(tl.uint32, bitcast=True) >> 23) & 0xFF).to(tl.int32)
    exponent = tl.maximum(exponent, 121)  # 2^-6, the least normal; below, steps stay as they are
    step = ((exponent - 3) << 23).to(tl.float32, bitcast=True)
    half_even: tl.constexpr = 12582912.0  # 1.5 * 2^23: adding it leaves no fraction
    return (x / step + half_even - half_even) * step

"""The kernels with the types they are called with: what the compile gate compiles for every
architecture, and what plugins are cut from.
"""

from collections.abc import Mapping

import torch

from lumosx_rt.kernels import (
    linear_fp8,
    norm_modulate,
    qk_norm_rope,
    quantize_kv,
    relational_attention,
    relational_cross_attention,
)
from lumosx_rt.kernels.compile import Specialization
from lumosx_rt.kernels.tiles import AttentionTiles, RowTiles

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
}
EPS = 1e-6  # of every norm of Wan2.1
_E4M3, _F32 = POINTERS[torch.float8_e4m3fn], POINTERS[torch.float32]


def of_relational_attention(
    dtype: torch.dtype, heads: int, head_dim: int, tiles: AttentionTiles, *, e4m3: bool = False
) -> Specialization:
    """Self-attention; dtype is that of queries and outputs, and of keys unless e4m3."""
    own = POINTERS[dtype]
    keys = _E4M3 if e4m3 else own
    scales = _F32 if e4m3 else own
    types = dict.fromkeys(("q", "cq", "out", "cout"), own)
    types |= dict.fromkeys(("k", "v", "ck", "cv"), keys)
    names = ("k_scale", "k_mean", "v_scale", "ck_scale", "ck_mean", "cv_scale")
    types |= dict.fromkeys(names, scales)
    types |= {"group_index": "*i64", "group_mask": "*u8", "group_inverse": "*i64"}
    types |= {"lse": own}  # without an lse, its pointer is the queries'
    kernel = relational_attention.kernel
    constants = relational_attention.constants(heads, head_dim, tiles, e4m3, False)
    return _specialization("relational_attention", kernel, types, constants, tiles.num_warps, tiles)


def of_relational_cross_attention(
    dtype: torch.dtype, heads: int, head_dim: int, tiles: AttentionTiles, *, biased: bool = True
) -> Specialization:
    """Cross-attention, given its bias table."""
    types = dict.fromkeys(("q", "k", "v", "table", "out"), POINTERS[dtype])
    types |= {"bias_tiles": "*i64"}
    kernel = relational_cross_attention.kernel
    constants = relational_cross_attention.constants(heads, head_dim, tiles, biased)
    return _specialization(
        "relational_cross_attention", kernel, types, constants, tiles.num_warps, tiles
    )


def of_bias_table(dtype: torch.dtype, heads: int, head_dim: int) -> Specialization:
    """Return the table of MCAM."""
    types = dict.fromkeys(("q", "k", "table"), POINTERS[dtype])
    types |= {"weight": _F32}
    kernel = relational_cross_attention.table_kernel
    constants = relational_cross_attention.table_constants(heads, head_dim, 0.5)
    return _specialization("bias_table", kernel, types, constants)


def of_quantize_kv(dtype: torch.dtype, heads: int, head_dim: int) -> Specialization:
    """Keys and values into e4m3."""
    types = dict.fromkeys(("k", "v"), POINTERS[dtype])
    types |= dict.fromkeys(("k_mean", "v_scale", "k_scale"), _F32)
    types |= dict.fromkeys(("k8", "v8"), _E4M3)
    constants = quantize_kv.constants(heads, head_dim)
    return _specialization("quantize_kv", quantize_kv.kernel, types, constants)


def of_kv_statistics(dtype: torch.dtype, heads: int, head_dim: int) -> Specialization:
    """Return what keys share and how large values are, block by block."""
    types = dict.fromkeys(("k", "v"), POINTERS[dtype]) | dict.fromkeys(("k_sum", "v_amax"), _F32)
    constants = quantize_kv.constants(heads, head_dim)
    kernel = quantize_kv.statistics_kernel
    return _specialization("kv_statistics", kernel, types, constants)


def of_norm_modulate(
    dtype: torch.dtype, dim: int, tiles: RowTiles, *, quantize: bool = False
) -> Specialization:
    """Gated residual, layer norm and modulation, around a float32 residual stream."""
    types = dict.fromkeys(("x", "gate", "scale", "shift", "x_out", "y_scale"), _F32)
    types |= {"delta": POINTERS[dtype], "y_out": _E4M3 if quantize else POINTERS[dtype]}
    constants = norm_modulate.constants(dim, tiles, 1, 1, 1, quantize, EPS)
    aligned = frozenset({"gate_stride", "scale_stride", "shift_stride"})
    kernel, warps = norm_modulate.kernel, tiles.warps(constants["BLOCK"])
    return _specialization("norm_modulate", kernel, types, constants, warps, aligned=aligned)


def of_qk_norm_rope(
    dtype: torch.dtype, heads: int, head_dim: int, tiles: RowTiles, *, rope: bool = True
) -> Specialization:
    """QK norm and rotation."""
    types = dict.fromkeys(("x", "weight", "out"), POINTERS[dtype])
    types |= {"rope": _F32 if rope else POINTERS[dtype]}
    constants = qk_norm_rope.constants(heads * head_dim, heads, tiles, 1, 1 if rope else None, EPS)
    aligned = frozenset({"rope_stride", "sine_offset"})
    kernel = qk_norm_rope.kernel
    warps = tiles.warps(2 * constants["BLOCK_HEADS"] * constants["BLOCK_PAIRS"])
    return _specialization("qk_norm_rope", kernel, types, constants, warps, aligned=aligned)


def of_gelu_quantize(dtype: torch.dtype, dim: int, tiles: RowTiles) -> Specialization:
    """GELU into e4m3, a scale a row."""
    types = {"x": POINTERS[dtype], "out": _E4M3, "scale": _F32}
    constants = linear_fp8.constants(dim, tiles)
    return _specialization("gelu_quantize", linear_fp8.kernel, types, constants, tiles.num_warps)


def _specialization(
    name: str,
    kernel: object,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    num_warps: int = 4,
    tiles: AttentionTiles | None = None,
    aligned: frozenset[str] = frozenset(),
) -> Specialization:
    """Arguments with neither a type nor a constant are 32-bit counts and strides."""
    names: list[str] = kernel.arg_names  # type: ignore[attr-defined]
    unknown = (types.keys() | constants.keys()) - set(names)
    assert not unknown, f"{name} takes no {sorted(unknown)}"
    return Specialization(
        name=name,
        kernel=kernel,
        types={n: types.get(n, "i32") for n in names if n not in constants},
        constants=constants,
        num_warps=num_warps,
        num_stages=3 if tiles is None else tiles.num_stages,
        aligned=aligned,
    )

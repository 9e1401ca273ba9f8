"""What compilers make of a kernel's arguments: names in C++, and numbers that they widen."""

import re

import pytest
import torch

from lumosx_rt.kernels import (
    linear_fp8,
    norm_modulate,
    qk_norm_rope,
    quantize_kv,
    relational_attention,
    relational_cross_attention,
)
from lumosx_rt.kernels import signatures as of
from lumosx_rt.kernels.tiles import AttentionTiles, RowTiles

KERNELS = {
    "linear_fp8": linear_fp8.kernel,
    "norm_modulate": norm_modulate.kernel,
    "qk_norm_rope": qk_norm_rope.kernel,
    "quantize_kv": quantize_kv.kernel,
    "statistics": quantize_kv.statistics_kernel,
    "relational_attention": relational_attention.kernel,
    "relational_cross_attention": relational_cross_attention.kernel,
    "table": relational_cross_attention.table_kernel,
}
# a package has a C++ function with these names for every kernel
CPP = """
alignas alignof and and_eq asm atomic_cancel atomic_commit atomic_noexcept auto bitand bitor bool
break case catch char char8_t char16_t char32_t class compl concept const consteval constexpr
constinit const_cast continue co_await co_return co_yield decltype default delete do double
dynamic_cast else enum explicit export extern false float for friend goto if inline int long
mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public
reflexpr register reinterpret_cast requires return short signed sizeof static static_assert
static_cast struct switch synchronized template this thread_local throw true try typedef typeid
typename union unsigned using virtual void volatile wchar_t while xor xor_eq
""".split()
TILES, ROWS = AttentionTiles(16, 32, 4, 1), RowTiles(3, 4)
SIGNATURES = [
    of.of_relational_attention(torch.bfloat16, 2, 32, TILES),
    of.of_relational_attention(torch.bfloat16, 2, 32, TILES, e4m3=True),
    of.of_relational_cross_attention(torch.bfloat16, 2, 32, TILES),
    of.of_bias_table(torch.bfloat16, 2, 32),
    of.of_quantize_kv(torch.bfloat16, 2, 32),
    of.of_kv_statistics(torch.bfloat16, 2, 32),
    of.of_norm_modulate(torch.bfloat16, 64, ROWS),
    of.of_qk_norm_rope(torch.bfloat16, 2, 32, ROWS),
    of.of_gelu_quantize(torch.bfloat16, 64, ROWS),
]


def misnamed(names: list[str]) -> list[str]:
    return [name for name in names if name in CPP or not re.fullmatch(r"[A-Za-z_]\w*", name)]


@pytest.mark.parametrize("name", KERNELS)
def test_arguments_are_no_keywords_of_cpp(name: str) -> None:
    kernel = KERNELS[name]
    names = list(getattr(kernel, "arg_names", None) or kernel.fn.__code__.co_varnames)
    names = names[: kernel.fn.__code__.co_argcount]
    assert len(names) >= 5 and not misnamed(names)


def test_a_keyword_would_be_found() -> None:
    assert misnamed(["q", "template", "k"]) == ["template"]


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda s: s.name)
def test_no_argument_is_a_float_that_a_compiler_would_widen(signature) -> None:
    """Floats are constants: Inductor hands those of Python over as float64."""
    kinds = {name: kind for name, kind in signature.types.items() if not kind.startswith("*")}
    assert kinds and set(kinds.values()) == {"i32"}

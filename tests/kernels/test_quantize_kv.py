"""Keys and values in e4m3, against torch's own rounding."""

import pytest
import torch

from lumosx_rt.kernels.quantize_kv import KEY_BLOCK, dequantize_kv, plain, quantize_kv
from tests.helpers.budget import assert_same_codes, assert_within_budget, relative
from tests.kernels.cases import random


@pytest.mark.parametrize("tokens", [1, 127, 128, 300])
@pytest.mark.parametrize("head_dim", [24, 32])
def test_kernel_and_plain_torch_agree(tokens: int, head_dim: int) -> None:
    shape = (2, tokens, 2, head_dim)
    k = random(*shape, seed=1, dtype=torch.bfloat16) + 3
    v = random(*shape, seed=2, dtype=torch.bfloat16) * torch.arange(1, head_dim + 1)
    v = v.bfloat16()
    found, expected = quantize_kv(k, v), plain(k, v)
    for name, one, other in zip(found._fields, found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype, name
    mean = k.double().mean(1)
    centred = k.double() - mean[:, None]
    blocks = torch.nn.functional.pad(centred, (0, 0, 0, 0, 0, -tokens % KEY_BLOCK))
    amax = blocks.unflatten(1, (-1, KEY_BLOCK)).abs().amax((2, 4)).clamp_min(1e-12)
    k_scale, v_scale = amax / 448, v.double().abs().amax(1) / 448
    exact = {"k_scale": k_scale.transpose(1, 2), "k_mean": mean, "v_scale": v_scale}
    for name, wide in exact.items():
        assert_within_budget(name, getattr(found, name), getattr(expected, name), wide)
    each = k_scale.repeat_interleave(KEY_BLOCK, 1)[:, :tokens, :, None]
    assert_same_codes("k", found.k, expected.k, centred / each)
    values = torch.nn.functional.pad((v / v_scale[:, None]).permute(0, 2, 3, 1), pad_of(tokens))
    assert_same_codes("v", found.v, expected.v, values)


def pad_of(tokens: int) -> tuple[int, int]:
    return 0, -tokens % KEY_BLOCK


def test_what_comes_back_is_what_went_in_to_e4m3s_precision() -> None:
    k, v = random(1, 200, 2, 32, seed=1) + 5, random(1, 200, 2, 32, seed=2)
    k_again, v_again = dequantize_kv(quantize_kv(k, v), torch.float64)
    centred = k.double() - k.double().mean(1, keepdim=True)
    assert float((k_again - k).norm() / centred.norm()) < 0.03  # of what differs between keys
    assert relative(v_again, v.double()) < 0.03


def test_smoothing_by_the_mean_is_what_keeps_keys_apart() -> None:
    """Control: e4m3 of keys with a large common part loses ten times as much."""
    k = random(1, 256, 1, 32, seed=1) + 40
    again, _ = dequantize_kv(quantize_kv(k, k), torch.float64)
    blunt = (k / (k.amax() / 448)).to(torch.float8_e4m3fn).double() * (k.amax() / 448).double()
    assert (blunt - k).norm() > 10 * (again - k).norm()


def test_values_are_padded_to_whole_blocks_with_numbers() -> None:
    kv = quantize_kv(random(1, 5, 2, 16, seed=1), random(1, 5, 2, 16, seed=2))
    assert kv.v.shape == (1, 2, 16, KEY_BLOCK)
    assert kv.v.float().isfinite().all()


def test_constant_keys_and_no_keys() -> None:
    ones = torch.ones(1, 5, 2, 16)
    assert quantize_kv(ones, ones).k.float().eq(0).all()
    for quantized in (quantize_kv, plain):
        kv = quantized(ones[:, :0], ones[:, :0])
        assert kv.k.shape[1] == 0 and kv.k_mean.eq(0).all()
        # a block of zeros: an axis that may be empty has strides that compilers cannot order
        assert kv.k_scale.shape == (1, 2, 1) and kv.v.shape == (1, 2, 16, KEY_BLOCK)
        assert kv.v.float().eq(0).all() and kv.k_scale.gt(0).all()

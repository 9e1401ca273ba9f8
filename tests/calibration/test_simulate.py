"""E4M3 there and back: torch's own cast, the kernels' rounding, an independent oracle."""

import pytest
import torch
from torch import nn

from lumosx_rt.calibration.scheme import Scheme, centred
from lumosx_rt.calibration.simulate import SimulatedLinear, attend_e4m3, attend_rows
from lumosx_rt.kernels import quantize_kv
from lumosx_rt.kernels.linear_fp8 import LinearFp8
from lumosx_rt.kernels.norm_modulate import quantize_rows
from lumosx_rt.kernels.qdq import quantize, weight_scale
from lumosx_rt.reference.backbones.ops import attend
from lumosx_rt.reference.errors import LumosXError
from tests.helpers.budget import assert_within_budget


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weights", ["tensor", "channel"])
def test_weights_are_rounded_as_the_kernels_round_them(weights):
    linear = nn.Linear(32, 48)
    theirs = LinearFp8(linear, 0.02, weights)
    scale = weight_scale(linear.weight.detach(), weights)
    assert torch.equal(scale.flatten(), theirs.weight_scale.flatten())
    assert torch.equal(quantize(linear.weight.detach(), scale).float(), theirs.weight.float())


@pytest.mark.parametrize(
    ("scale", "weights"), [(0.1, "tensor"), (0.1, "channel"), (None, "channel")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_is_the_kernels_bit_for_bit(scale, weights, dtype):
    linear = nn.Linear(32, 48, dtype=dtype).requires_grad_(False)
    x = noise(2, 7, 32).to(dtype)
    assert torch.equal(
        SimulatedLinear(linear, scale, weights)(x), LinearFp8(linear, scale, weights)(x)
    )


def test_rows_and_keys_are_quantized_as_the_kernels_quantize_them():
    x = noise(2, 150, 2, 16)
    rows = quantize_rows(x)
    assert torch.equal(quantize(x, rows.scale).float(), rows.values.float())
    kv = quantize_kv.plain(x, x.flip(1))
    block = (x - x.mean(1, keepdim=True))[0, :128, 1]
    step = kv.k_scale[0, 1, 0]
    assert torch.equal(quantize(block, step).float(), kv.k[0, :128, 1].float())
    assert torch.equal(
        quantize(x.flip(1)[0, :, 1], kv.v_scale[0, 1]).float(), kv.v[0, 1, :, :150].float().T
    )


@pytest.mark.parametrize("attention", [attend_e4m3, attend_rows])
def test_attention_differs_from_the_references_by_its_probabilities_alone(attention):
    q, k, v = (noise(2, 40, 2, 16, seed=i) for i in range(3))
    mask = noise(2, 1, 40, 40) > -1
    for given in (None, mask, noise(2, 1, 40, 40)):
        right = attend(q, k, v, given)
        error = float((attention(q, k, v, given) - right).norm() / right.norm())
        assert 1e-4 < error < 0.04


def test_smoothed_keys_change_no_attention():
    video_q, video_k = noise(4, 12, 2, 16), noise(4, 12, 2, 16, seed=1) + 5
    condition_k = noise(2, 6, 2, 16, seed=2) + 5
    video, condition = centred(video_k, condition_k)
    for stream in range(2):
        given, own = (
            torch.cat([v[2 * stream], v[2 * stream + 1], c[stream]])
            for v, c in ((video_k, condition_k), (video, condition))
        )
        plain, exact = (k - k.mean(0) for k in (given, given.double()))
        assert_within_budget("keys less their mean", own, plain, exact)
    keys, smooth = (
        torch.cat([k, c.repeat_interleave(2, 0)], 1)
        for k, c in ((video_k, condition_k), (video, condition))
    )
    plain, found = (attend(video_q, k, keys) for k in (keys, smooth))
    exact = attend(video_q.double(), keys.double(), keys.double())
    assert_within_budget("attention", found, plain, exact)
    assert float(smooth.abs().max()) < float(keys.abs().max())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"weights": "block"}, "accepted are tensor, channel"),
        ({"activations": "none"}, "accepted are tensor, row"),
        ({"smooth_keys": 1}, "accepted are true, false"),
        ({"activations": "row", "smooth_keys": False}, "smoothed keys"),
    ],
)
def test_an_impossible_scheme_is_refused(words, said):
    with pytest.raises(LumosXError, match=said):
        Scheme(**words)

"""E4M3 there and back: torch's own cast, and an oracle that knows no cast."""

import pytest
import torch

from lumosx_rt.kernels.qdq import PLAIN, quantize, scale_of
from tests.calibration.parity import e4m3


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_torchs_own_cast_bit_for_bit(dtype):
    x = (noise(64, 96) * torch.logspace(-4, 3, 96)).to(dtype)
    cast = (x.float() / 0.25).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(quantize(x, 0.25).float(), cast.float())
    assert torch.equal(PLAIN(x, torch.tensor(0.25)), (cast.float() * 0.25).to(dtype))
    assert PLAIN(x, torch.tensor(0.25)).dtype == dtype


def test_every_value_of_e4m3_stays_and_all_between_round_as_the_oracle_says():
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = values[values.isfinite()]
    assert torch.equal(quantize(values, 1.0).float(), values)
    between = torch.cat([(values + step) for step in torch.linspace(-0.7, 0.7, 57)])
    wanted = torch.from_numpy(e4m3(between.numpy())).float()
    assert torch.equal(quantize(between, 1.0).float().abs(), wanted.abs())
    assert quantize(torch.tensor([1e9, -1e9]), 1.0).float().tolist() == [448, -448]


def test_a_scale_maps_the_amax_to_448_and_nothing_to_no_zero():
    assert quantize(torch.tensor([-3.7]), scale_of(3.7)).float().tolist() == [-448]
    assert scale_of(0.0) > 0
    assert float(torch.tensor(scale_of(3.7), dtype=torch.float32)) == scale_of(3.7)

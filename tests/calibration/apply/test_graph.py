"""A model that carries its scales: the simulation, spelled otherwise; and where it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lumosx_rt.calibration.apply.graph import CarriedLinear, carried
from lumosx_rt.calibration.noise import noise_calibration
from lumosx_rt.calibration.samples import moments_of, velocity_of
from lumosx_rt.calibration.scheme import Scheme
from lumosx_rt.calibration.sites import is_attention, sites_of
from lumosx_rt.kernels.qdq import PLAIN
from lumosx_rt.reference.backbones.ops import REFERENCE
from lumosx_rt.reference.errors import LumosXError
from tests.calibration import toys
from tests.calibration.parity import e4m3
from tests.calibration.roundings import WIDE, Roundings
from tests.helpers.budget import assert_within_budget, in_float64, relative

SITES = list(sites_of(toys.CONFIG))


def velocities(document, kept=(), example=0):
    """What a toy model gives without quantization; simulated; carried with the simulation's codes;
    and that in float64. `kept` sites stay as they are."""
    sites = {
        name: replace(site, kept="test" if name in kept else None)
        for name, site in document.sites.items()
    }
    document, model = replace(document, sites=sites), toys.model()
    given = toys.example(example)
    moment = moments_of(model, given, toys.SAMPLING)[1]
    velocity = velocity_of(model, given, 1.0)
    plain, roundings = velocity(moment), Roundings()
    with document.simulation(model).running(document.quantized), roundings.noted():
        simulated = velocity(moment)
    found = []
    for each, qdq in ((model, PLAIN), (in_float64(model), WIDE)):
        own = each.ops
        with (
            roundings.again() as put_right,
            carried(each, document, put_right.wrapped(qdq), REFERENCE) as ops,
        ):
            each.ops = ops
            found.append(velocity_of(each, given, 1.0)(moment))
        each.ops = own
    assert torch.equal(velocity(moment), plain)  # it is as it was
    return plain, simulated, *found


@pytest.mark.parametrize("example", range(3))
@pytest.mark.parametrize("scheme", [Scheme(), Scheme("tensor"), Scheme(smooth_keys=False)], ids=str)
def test_it_is_the_simulation(scheme, example):
    plain, simulated, spelled, exact = velocities(toys.calibration(scheme), example=example)
    assert_within_budget("velocity", spelled, simulated, exact)
    assert relative(spelled, plain.double()) > 1e-2


@pytest.mark.parametrize("part", ["self_attn.q", "ffn.2", "self", "cross"])
def test_what_stays_in_high_precision_does(part):
    kept = [site for site in SITES if site.endswith(f".{part}")]
    _, simulated, spelled, exact = velocities(toys.calibration(), kept)
    assert_within_budget("velocity", spelled, simulated, exact)
    _, everything, _, _ = velocities(toys.calibration())
    assert relative(spelled, everything.double()) > 1e-3
    plain, _, none, _ = velocities(toys.calibration(), SITES)
    assert torch.equal(plain, none)


@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_a_linear_is_what_float64_says(weights):
    linear = nn.Linear(32, 48).requires_grad_(False)
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    axis = 1 if weights == "channel" else None
    weight = linear.weight.numpy()
    scale = np.abs(weight).max(axis=axis, keepdims=True) * np.float32(1 / 448)
    wide = e4m3(weight / scale) * scale.astype(np.float64)
    x8 = e4m3(x.numpy() / np.float32(0.01)) * np.float32(0.01)
    wanted = x8 @ wide.T
    exact = torch.from_numpy(wanted + linear.bias.numpy())
    plain = nn.functional.linear(torch.from_numpy(x8).float(), torch.from_numpy(wide).float())
    out = CarriedLinear(linear, 0.01, weights, PLAIN)(x)
    assert_within_budget("y", out, plain + linear.bias, exact)
    assert relative(CarriedLinear(linear, 0.011, weights, PLAIN)(x), exact) > 1e-3


def test_weights_lie_in_a_byte_each_and_scales_have_their_sites_names():
    model, document = toys.model(), toys.calibration()
    with carried(model, document, PLAIN, REFERENCE):
        state = model.state_dict()
        for site in SITES:
            own = document.sites[site].scales
            assert {role: float(state[f"{site}.{role}"]) for role in own} == own
            if not is_attention(site):
                assert state[f"{site}.weight"].dtype == torch.float8_e4m3fn


def test_scales_found_while_running_and_other_models_are_refused():
    with pytest.raises(LumosXError, match="a scale a row, found while running"):
        with carried(toys.model(), toys.calibration(Scheme(activations="row")), PLAIN, REFERENCE):
            raise AssertionError
    other = toys.model()
    other.blocks[0].self_attn.q.weight.mul_(1.5)
    with pytest.raises(LumosXError, match="other largest weights"):
        with carried(other, toys.calibration(), PLAIN, REFERENCE):
            raise AssertionError


def test_a_failure_inside_leaves_the_model_as_it_was():
    model = toys.model()
    before = dict(model.named_modules())
    with pytest.raises(KeyboardInterrupt):
        with carried(model, toys.calibration(), PLAIN, REFERENCE):
            assert dict(model.named_modules()) != before
            raise KeyboardInterrupt
    assert dict(model.named_modules()) == before


def test_random_weights_are_calibrated_on_noise(tmp_path):
    from lumosx_rt.calibration.calibration_file import read_calibration

    model = toys.model()
    document = noise_calibration(model, "a" * 64)
    document.write(tmp_path / "noise.json")
    read = read_calibration(tmp_path / "noise.json")
    assert set(read.quantized) == set(SITES) and read.scenes["name"] == "noise"
    read.check(model, "a" * 64)

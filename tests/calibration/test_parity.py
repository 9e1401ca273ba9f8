"""Simulated FP8, site by site with teacher forcing; and faults that this has to catch."""

from dataclasses import replace

import pytest
import torch

from lumosx_rt.calibration import simulate
from lumosx_rt.calibration.samples import moments_of, velocity_of
from lumosx_rt.calibration.scheme import Scheme
from lumosx_rt.calibration.simulate import Simulation
from lumosx_rt.calibration.sites import sites_of
from tests.calibration import parity, toys

SITES = list(sites_of(toys.CONFIG))


def simulation(change=lambda scales: scales, scheme=None):
    document = toys.calibration()
    scales = {site: dict(roles) for site, roles in document.scales.items()}
    return Simulation(toys.model(), scheme or Scheme(**document.scheme), change(scales))


@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_every_site_is_what_float64_says(weights):
    document = toys.calibration(Scheme(weights=weights))
    errors = parity.layer_errors(document.simulation(toys.model()), SITES, document)
    assert set(errors) == set(SITES)
    assert not parity.failing(errors), errors


@pytest.mark.parametrize(
    "site", ["blocks.0.self_attn.q", "blocks.1.ffn.2", "blocks.0.cross_attn.k"]
)
@pytest.mark.parametrize("factor", ["inverse", 1.1, 0.5])
def test_a_flipped_scale_of_a_linear_is_caught(site, factor):
    def change(scales):
        right = scales[site]["x"]
        scales[site]["x"] = 1 / right if factor == "inverse" else right * factor
        return scales

    errors = parity.layer_errors(simulation(change), SITES, toys.calibration())
    assert parity.failing(errors) == {site}


@pytest.mark.parametrize("site", ["blocks.0.self", "blocks.1.cross"])
@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_a_flipped_scale_of_an_attention_is_caught(site, role):
    def change(scales):
        scales[site][role] = 1 / scales[site][role]
        return scales

    errors = parity.layer_errors(simulation(change), SITES, toys.calibration())
    assert parity.failing(errors) == {site}


@pytest.mark.parametrize("site", SITES[:12])
def test_a_dropped_quantization_is_caught(site):
    left = [other for other in SITES if other != site]
    errors = parity.layer_errors(simulation(), left, toys.calibration())
    assert parity.failing(errors) == {site}


def test_an_amax_of_the_wrong_site_is_caught():
    def change(scales):
        wrong, right = "blocks.0.ffn.2", "blocks.0.ffn.0"
        assert scales[wrong] != scales[right]
        return scales | {right: scales[wrong]}

    errors = parity.layer_errors(simulation(change), SITES, toys.calibration())
    assert parity.failing(errors) == {"blocks.0.ffn.0"}


def test_swapped_groups_of_operands_are_caught():
    """Queries by the values' scale, values by the queries'."""

    def change(scales):
        own = scales["blocks.0.self"]
        own["q"], own["v"] = own["v"], own["q"]
        return scales

    errors = parity.layer_errors(simulation(change), SITES, toys.calibration())
    assert parity.failing(errors) == {"blocks.0.self"}


def test_swapped_groups_of_references_are_caught(monkeypatch):
    right = simulate.plain.self_attention

    def swapped(call, attend):
        flipped = call.structure.group_inverse.flip(1)
        return right(
            call._replace(structure=call.structure._replace(group_inverse=flipped)), attend
        )

    wrong = simulation()
    monkeypatch.setattr(simulate.plain, "self_attention", swapped)
    errors = parity.layer_errors(wrong, SITES, toys.calibration())
    assert parity.failing(errors) == {"blocks.0.self"}  # the last block has no such queries


def test_plain_keys_where_smoothed_ones_were_calibrated_are_caught():
    wrong = simulation(scheme=Scheme(smooth_keys=False))
    failing = parity.failing(parity.layer_errors(wrong, SITES, toys.calibration()))
    assert {"blocks.0.self", "blocks.0.cross"} <= failing


def test_the_model_is_as_it_was_afterwards():
    model = toys.model()
    before, ops = dict(model.named_modules()), model.ops
    with pytest.raises(KeyboardInterrupt), toys.calibration().simulation(model).running(SITES):
        assert dict(model.named_modules()) != before
        raise KeyboardInterrupt
    assert dict(model.named_modules()) == before and model.ops is ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "scheme",
    [Scheme(), Scheme("tensor"), Scheme(smooth_keys=False), Scheme(activations="row")],
    ids=str,
)
def test_a_whole_model_in_fp8_is_close_but_not_equal(scheme, dtype):
    from lumosx_rt.reference.backbones.precision import recast

    model = recast(toys.model(), dtype)
    document = toys.calibration(scheme)
    example = toys.example(0)
    moment = moments_of(model, example, toys.SAMPLING)[1]
    velocity = velocity_of(model, example, 1.0)
    exact = velocity(moment)
    with document.simulation(model).running(document.quantized):
        wrong = velocity(moment)
    error = float((wrong - exact).norm() / exact.norm())
    assert 1e-3 < error < 0.15
    assert torch.equal(velocity(moment), exact)


def test_the_document_refuses_other_weights():
    from lumosx_rt.reference.errors import LumosXError

    model = toys.model()
    model.blocks[1].ffn[0].weight.mul_(1.5)
    with pytest.raises(LumosXError, match=r"blocks\.1\.ffn\.0 has other largest weights"):
        toys.calibration().simulation(model)
    with pytest.raises(LumosXError, match="model of other num_layers"):
        toys.calibration().check(toys.model(replace(toys.CONFIG, num_layers=3)))
    with pytest.raises(LumosXError, match="sha256 000000000000"):
        toys.calibration().check(toys.model(), "f" * 64)

"""A calibrated model on the kernels' own 8-bit products, against the same thing simulated."""

import json
from dataclasses import replace

import pytest
import torch

from lumosx_rt.calibration.apply.kernels import on_kernels
from lumosx_rt.calibration.samples import moments_of, velocity_of
from lumosx_rt.calibration.scheme import Scheme
from lumosx_rt.kernels import tiles
from lumosx_rt.kernels.fused import attention_e4m3
from lumosx_rt.kernels.linear_fp8 import GeluQuantize, LinearFp8
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.metrics import relative_error
from tests.calibration import toys

HOPPER = (9, 0)


def keeping(document, parts):
    """The document with sites of these parts, and cross-attention, in high precision."""
    sites = {
        name: replace(site, kept="test" if name.split(".", 2)[2] in parts else None)
        for name, site in document.sites.items()
    }
    return replace(document, sites=sites)


@pytest.mark.parametrize(
    ("scheme", "kept"),
    [
        (Scheme(activations="row"), ["cross"]),
        pytest.param(Scheme(), ["cross", "self"], marks=pytest.mark.slow),
        pytest.param(Scheme(activations="row"), ["cross", "ffn.0", "self"], marks=pytest.mark.slow),
    ],
    ids=["all it can", "calibrated linears", "rows, some kept"],
)
def test_it_errs_as_the_simulation_does(scheme, kept):
    """bf16 around 8 bits: roundings fall otherwise here and there, so errors are compared."""
    document = keeping(toys.calibration(scheme), kept)
    exact = toys.model()
    example = toys.example(0)
    moment = moments_of(exact, example, toys.SAMPLING)[1]
    wanted = velocity_of(exact, example, 1.0)(moment)
    model = recast(exact, torch.bfloat16)
    velocity = velocity_of(model, example, 1.0)
    with document.simulation(model).running(document.quantized):
        simulated = relative_error(velocity(moment), wanted)
    own, plain = model.ops, relative_error(velocity(moment), wanted)
    with on_kernels(model, document, HOPPER, e4m3_attention=True) as ops:
        model.ops = ops
        error = relative_error(velocity(moment), wanted)
    model.ops = own
    assert 2 * plain < error < 1.5 * simulated, (plain, error, simulated)
    assert relative_error(velocity(moment), wanted) == plain


def test_what_is_replaced():
    model = recast(toys.model(), torch.bfloat16)
    before = dict(model.named_modules())
    document = keeping(toys.calibration(Scheme(activations="row")), ["ffn.0"])
    with on_kernels(model, document, HOPPER) as ops:
        assert isinstance(model.get_submodule("blocks.0.self_attn.q"), LinearFp8)
        assert not isinstance(model.get_submodule("blocks.0.ffn.0"), LinearFp8)
        assert isinstance(model.get_submodule("blocks.0.ffn.1"), GeluQuantize)
        assert ops.norm_modulate.__name__ == "norm_modulate"  # one linear reads what is wider
    assert dict(model.named_modules()) == before
    whole = toys.calibration(Scheme(activations="row"))
    with on_kernels(model, whole, HOPPER) as ops:
        assert ops.norm_modulate.__name__ == "norm_modulate_rows"
    with on_kernels(model, toys.calibration(), HOPPER) as ops:
        scale = model.get_submodule("blocks.1.ffn.2").input_scale
        assert float(scale) == toys.calibration().sites["blocks.1.ffn.2"].scales["x"]


def test_attention_is_in_8_bits_only_where_a_measurement_says_that_it_is_faster(monkeypatch):
    model = recast(toys.model(), torch.bfloat16)
    document = toys.calibration(Scheme(activations="row"))
    with on_kernels(model, document, HOPPER) as ops:  # not measured: linears alone
        assert ops.self_attention is not attention_e4m3
        assert isinstance(model.get_submodule("blocks.0.self_attn.q"), LinearFp8)
    table = json.loads(tiles.FILE.read_text())
    table["sm_90"]["self_attention/e4m3"] = {"faster": True, "source": "a test"}
    monkeypatch.setattr(tiles, "_table", lambda: table)
    with on_kernels(model, document, HOPPER) as ops:
        assert ops.self_attention is attention_e4m3
    with on_kernels(model, document, (8, 9)) as ops:  # another GPU's measurement says nothing
        assert ops.self_attention is not attention_e4m3


def test_what_cannot_be_had_is_refused():
    model = recast(toys.model(), torch.bfloat16)
    with pytest.raises(ValueError, match="needs sm_89 or later, this is sm_80"):
        on_kernels(model, toys.calibration(), (8, 0))
    with pytest.raises(ValueError, match="weights a channel"):
        on_kernels(model, toys.calibration(Scheme("tensor", "row")), HOPPER)
    model.blocks[0].self_attn.q.weight.mul_(1.5)
    with pytest.raises(LumosXError, match="other largest weights"):
        on_kernels(model, toys.calibration(), HOPPER)

"""An FP8 graph looked into: every fault that a conversion can have is named, by site."""

import shutil
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from lumosx_rt.artifact.manifest import GRAPH
from lumosx_rt.backends.common.fp8_layers import layer_parity, products_of
from lumosx_rt.calibration.calibration_file import read_calibration
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.errors import LumosXError

LINEAR, ATTENTION = "blocks.0.self_attn.o", "blocks.1.self"


@pytest.fixture(scope="module")
def model(micro_bundle):
    return load_transformer(micro_bundle)


@pytest.fixture(scope="module")
def document(scales):
    return read_calibration(scales)


@pytest.fixture
def changed(fp8_engine, tmp_path):
    """`changed(edit)`: a copy of the engine's graph that `edit` was given to change."""

    def change(edit):
        folder = shutil.copytree((fp8_engine.folder / GRAPH).parent, tmp_path / "graph")
        graph = ir.load(folder / "model.onnx")
        edit(graph.graph)
        ir.save(graph, folder / "model.onnx")
        return folder / "model.onnx"

    return change


def initializer(graph, name):
    return graph.initializers[f"model.{name}"]


def put(value, array):
    value.const_value = ir.tensor(array, name=value.name)


def refusal(path, model, document) -> str:
    with pytest.raises(LumosXError) as found:
        layer_parity(path, model, document, document.quantized)
    return str(found.value)


def test_a_right_graph_is_exact(fp8_engine, model, document):
    facts = layer_parity(fp8_engine.folder / GRAPH, model, document, document.quantized)
    assert facts["products"] == len(products_of(fp8_engine.folder / GRAPH)) == 30
    assert 0 < facts["worst_product"] < 1e-6 and facts["roundings"] > 40
    assert sorted(set(products_of(fp8_engine.folder / GRAPH).values())) == sorted(
        site for site in document.quantized if not site.endswith((".self", ".cross"))
    )
    assert {p.name for p in (fp8_engine.folder / GRAPH).parent.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
    }


@pytest.mark.parametrize("site", [LINEAR, ATTENTION])
def test_a_flipped_scale_is_named(changed, model, document, site):
    name = f"{site}.{'k' if site == ATTENTION else 'x'}"

    def flip(graph):
        value = initializer(graph, name)
        put(value, np.float32(1) / value.const_value.numpy())

    assert f"{site}: " in refusal(changed(flip), model, document)


def test_an_amax_of_the_wrong_site_is_named(changed, model, document):
    def swap(graph):
        one, other = (initializer(graph, f"blocks.{i}.self_attn.o.x") for i in (0, 1))
        first, second = one.const_value.numpy(), other.const_value.numpy()
        put(one, second), put(other, first)

    said = refusal(changed(swap), model, document)
    assert "blocks.0.self_attn.o: " in said and "blocks.1.self_attn.o: " in said


def test_swapped_operands_are_named(changed, model, document):
    """Queries by the values' scale, values by the queries'."""

    def swap(graph):
        q, v = (initializer(graph, f"{ATTENTION}.{role}") for role in "qv")
        first, second = q.const_value.numpy(), v.const_value.numpy()
        put(q, second), put(v, first)

    assert f"{ATTENTION}: " in refusal(changed(swap), model, document)


@pytest.mark.parametrize("site", [LINEAR, ATTENTION])
def test_a_dropped_rounding_is_named(changed, model, document, site):
    name = f"{site}.{'v' if site == ATTENTION else 'x'}"

    def drop(graph):
        for quantize, _ in list(initializer(graph, name).uses()):
            if quantize.op_type == "QuantizeLinear":
                ((dequantize, _),) = quantize.outputs[0].uses()
                ir.convenience.replace_all_uses_with(dequantize.outputs[0], quantize.inputs[0])
                graph.remove([dequantize, quantize], safe=True)

    assert f"{site}: " in refusal(changed(drop), model, document)


def test_one_weight_off_by_one_step_is_named(changed, model, document):
    def nudge(graph):
        value = initializer(graph, f"{LINEAR}.weight")
        raw = value.const_value.numpy().copy()
        raw.view(np.uint8)[3, 5] ^= 1
        put(value, raw)

    assert f"{LINEAR}: differs from float64" in refusal(changed(nudge), model, document)


def test_a_site_that_should_not_be_quantized_is_named(fp8_engine, model, document):
    kept = replace(document.sites[LINEAR], kept="test")
    fewer = replace(document, sites=document.sites | {LINEAR: kept})
    assert f"{LINEAR} is quantized, which it must not be" in refusal(
        fp8_engine.folder / GRAPH, model, fewer
    )

"""What differs between the two TensorRTs: kernels by an inspector, plugins in a network."""

import json
from types import SimpleNamespace

import pytest

from lumosx_rt.export.tensorrt.variants import missing_plugins, name_plugins, read_inspected
from lumosx_rt.reference.errors import LumosXError

# as TensorRT's documentation shows the two schemas: 10 has one field for layout and type, 11 two
LAYERS = {
    "10": {
        "Name": "node5",
        "LayerType": "PluginV3",
        "Inputs": [
            {
                "Name": "q",
                "Location": "Device",
                "Format/Datatype": "Row major BFloat16",
            },
            {"Name": "mask", "Location": "Device", "Format/Datatype": "Bool"},
        ],
        "Metadata": "[ONNX Layer: node5]",
    },
    "11": {
        "Name": "_gemm_mha_v2_0",
        "LayerType": "kgen",
        "Inputs": [{"Name": "q", "DataType": "Half", "Format": "Row major linear (kLINEAR)"}],
        "Metadata": "[ONNX Layer: blocks.0.cross.video]\x1e[ONNX Layer: node_view]",
    },
}


def test_layers_of_both_schemas() -> None:
    plugin, attention = read_inspected(json.dumps({"Layers": [*LAYERS.values()]}))
    assert (plugin.name, plugin.kind, plugin.nodes) == ("node5", "PluginV3", ("node5",))
    assert plugin.inputs == (("q", "BFloat16"), ("mask", "Bool")) and not plugin.is_attention
    assert attention.nodes == ("blocks.0.cross.video", "node_view") and attention.is_attention
    assert attention.types == ("Half",)


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": []}', '{"Layers": ["just a name"]}', "[1]"])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(LumosXError, match="no layers to judge"):
        read_inspected(text)


def test_a_plugin_is_found_by_name_or_by_metadata() -> None:
    layers = read_inspected(json.dumps({"Layers": [*LAYERS.values()]}))
    assert missing_plugins(layers, ["node5", "node_view"]) == []
    (lost,) = missing_plugins(layers, ["node5", "node6"])
    assert "node6" in lost


def network(*kinds: str) -> SimpleNamespace:
    layers = [SimpleNamespace(name=f"n{i}", type=kind) for i, kind in enumerate(kinds)]
    return SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__, layers=layers)


def test_every_opaque_node_has_to_become_a_plugin() -> None:
    trt = SimpleNamespace(LayerType=SimpleNamespace(PLUGIN_V3="plugin"))
    built = network("cast", "plugin", "softmax", "plugin")
    plugins = {"n1": "QkNormRope", "n3": "VideoAttention"}
    assert name_plugins(trt, built, plugins) == ["n1", "n3"]
    assert built.layers[3].metadata == "[ONNX Layer: n3]"
    with pytest.raises(LumosXError, match="1 plugins of the graph's 2.*VideoAttention"):
        name_plugins(trt, network("cast", "plugin", "softmax", "matmul"), plugins)
    with pytest.raises(LumosXError, match="2 plugins of the graph's 1"):
        name_plugins(trt, built, {"n1": "QkNormRope"})
    assert name_plugins(trt, network("cast"), {}) == []

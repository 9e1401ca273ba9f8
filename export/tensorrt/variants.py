"""What differs between the two TensorRTs, for the one builder of plans (`tensorrt.py`).

              tensorrt-rtx                         tensorrt
built for     named compute capabilities           the GPU of this machine
references    fused kernels of TensorRT's own      our plugins, compiled ahead of time
what became   a table that it logs while building  its engine inspector, afterwards
fp32 products exact                                exact; TF32 is on unless switched off
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumosx_rt.export.tensorrt.layer_table import Layer, read_layers
from lumosx_rt.reference.errors import Unsupported

DOMAIN = "lumosx"


@dataclass(frozen=True)
class Dialect:
    """How one of the two is spoken to; flags by the names of TensorRT's enumerations."""

    creation_flags: tuple[str, ...]
    parser_flags: tuple[str, ...]
    without: tuple[str, ...]
    """Builder flags that are on by default and must not be."""
    layers: Callable[[Any, Any, str, Any], list[Layer]]
    """(module, logger, what it logged as its table, plan) -> the kernels of the plan."""
    judged: bool
    """Whether a plan is refused for its kernels: where it cannot be run, they are all that is
    known of it. Where it can, it is, and what is odd about them is told."""

    def creation(self, trt: Any) -> int:
        names = trt.NetworkDefinitionCreationFlag
        return sum(1 << int(getattr(names, flag)) for flag in self.creation_flags)


def logged_layers(trt: Any, log: Any, table: str, plan: Any) -> list[Layer]:
    """Return the kernels by the table that was logged while building; no GPU is needed."""
    return read_layers(table)


def inspected_layers(trt: Any, log: Any, table: str, plan: Any) -> list[Layer]:
    """Return the kernels as the engine inspector of TensorRT 10 and 11 tells them, on a GPU."""
    engine = trt.Runtime(log).deserialize_cuda_engine(memoryview(plan))
    if engine is None:
        raise Unsupported("TensorRT cannot load the plan that it built a moment ago")
    inspector = engine.create_engine_inspector()
    return read_inspected(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


RTX = Dialect(("STRONGLY_TYPED",), (), (), logged_layers, judged=True)
CLASSIC = Dialect(
    # ahead of time: the plugins' code goes into the plan, which then runs without Python
    creation_flags=("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"),
    # or the parser prefers the function bodies, which are there for other runtimes
    parser_flags=("ENABLE_PLUGIN_OVERRIDE",),
    without=("TF32",),
    layers=inspected_layers,
    judged=False,
)


def read_inspected(text: str) -> list[Layer]:
    """Return the kernels of an engine inspector's JSON. Raises LumosXError where the text is
    none."""
    try:
        entries = json.loads(text)["Layers"]
        layers = [
            Layer(
                str(entry["Name"]),
                str(entry.get("LayerType", "")),
                tuple((str(x["Name"]), _type_of(x)) for x in entry.get("Inputs", [])),
                _nodes_of(str(entry.get("Metadata", ""))),
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        layers = []
    if not layers:
        raise Unsupported(f"TensorRT returned no layers to judge the plan by: {text[:60]!r}")
    return layers


def _type_of(tensor: Mapping[str, Any]) -> str:
    """Return the tensor's type: 11 has a field for it, 10 a phrase with it."""
    said = str(tensor.get("DataType") or tensor.get("Format/Datatype") or "")
    found = [word for word in ("BFloat16", "Half", "Float", "FP8", "Int64", "Bool") if word in said]
    return found[0] if found else said


def _nodes_of(metadata: str) -> tuple[str, ...]:
    parts = (part.partition("]")[0] for part in metadata.split("[ONNX Layer: ")[1:])
    return tuple(parts)


# -- plugins ---------------------------------------------------------------------------------------


def plugin_nodes(graph: Path) -> dict[str, str]:
    """Return {name: kind} of every opaque node of an ONNX graph, in its order."""
    import onnx

    nodes = onnx.load(graph, load_external_data=False).graph.node
    return {node.name: node.op_type for node in nodes if node.domain == DOMAIN}


def name_plugins(trt: Any, network: Any, plugins: Mapping[str, str]) -> list[str]:
    """Have plugins tell which node they are; returns the names they got.

    Raises LumosXError where an opaque node became something else, as its function body would.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    if len(found) != len(plugins):
        lost = set(plugins) - {layer.name for layer in found}
        kinds = sorted({plugins[name] for name in lost})
        raise Unsupported(
            f"TensorRT made {len(found)} plugins of the graph's {len(plugins)} opaque nodes; "
            f"without one: {', '.join(kinds)}"
        )
    for layer in found:
        layer.metadata = f"[ONNX Layer: {layer.name}]"
    return [layer.name for layer in found]


def missing_plugins(layers: Sequence[Layer], plugins: Sequence[str]) -> list[str]:
    """List what is wrong with a plan's kernels: plugins that none of them names."""
    told = {layer.name for layer in layers} | {node for layer in layers for node in layer.nodes}
    return [f"the plugin {name} is no kernel of the plan" for name in plugins if name not in told]

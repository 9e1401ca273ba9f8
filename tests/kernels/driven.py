"""Run by test_plugin_lifecycle.py in a process of its own: plugins driven as TensorRT drives them.

Its own plugin classes (tensorrt.plugin), made by the creators in the registry out of the fields an
ONNX node has, are asked in TensorRT's order: types, shapes, formats, tactics, launch, code. The
builder's symbolic expressions are stood in for. Prints JSON.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.kernels.plugged import (
    HEAD_DIM,
    HEADS,
    TEXT,
    assembles,
    bindings,
    declared,
    scene,
    symbols,
)


def arguments(t: dict) -> dict[str, list]:
    """What the nodes of each kind are given."""
    groups = [t[n] for n in ("group_index", "group_mask", "group_inverse")]
    video, condition, text = t["video"], t["condition"], t["text"]
    return {
        "QkNormRope": [t["x"], t["weight"], t["rope"]],
        "RelationalAttention": [*[video] * 3, *[condition] * 3, t["bias_tiles"], *groups],
        "VideoAttention": [*[video] * 3, condition, condition, t["bias_tiles"], *groups],
        "RelationalBias": [condition, text, t["template"], t["tile_pool"], t["bias_tiles"]],
        "RelationalCrossAttention": [condition, text, text, t["table"], t["bias_tiles"]],
    }


def fields_of(trt, creator, attributes: dict[str, float]):
    """A node's attributes as the parser hands them over: those that the creator names, in its
    order and types."""
    kinds = {trt.PluginFieldType.INT64: np.int64, trt.PluginFieldType.FLOAT64: np.float64}
    return trt.PluginFieldCollection(
        [
            trt.PluginField(f.name, np.array([attributes[f.name]], kinds[f.type]), f.type)
            for f in creator.field_names
        ]
    )


def drive(trt, builder, creator, given: list, attributes: dict, constants: set[int]) -> dict:
    """One plugin through its life; `constants` are the sizes that are known while building."""
    preference = trt.QuickPluginCreationRequest.PREFER_AOT
    phase, fields = trt.TensorRTPhase.BUILD, fields_of(trt, creator, attributes)
    plugin = creator.create_plugin(
        creator.name, creator.plugin_namespace, fields, phase, preference
    )
    types = [getattr(trt, str(x.dtype).removeprefix("torch.")) for x in given]
    outputs = plugin.get_output_data_types(types, [x.dim() for x in given])

    number = trt.IDimensionExpr
    shapes = [[number(size, size in constants) for size in x.shape] for x in given]
    trt.DimsExprs = lambda count: [None] * count
    found = plugin.get_output_shapes(shapes, [], builder)

    def described(kind, sizes):
        tensor = trt.DynamicPluginTensorDesc()
        desc = trt.PluginTensorDesc()
        desc.type, desc.format, desc.dims = kind, trt.TensorFormat.LINEAR, trt.Dims(sizes)
        tensor.desc, tensor.min, tensor.opt, tensor.max = desc, *[trt.Dims(sizes)] * 3
        return tensor

    ends = [described(k, [n.value for n in s]) for k, s in zip(types, shapes, strict=True)]
    ends += [described(k, [n.value for n in s]) for k, s in zip(outputs, found, strict=True)]
    combinations = plugin.get_supported_format_combinations(ends, len(given))
    per = len(ends)
    offered = [
        [(str(c.type), str(c.format)) for c in combinations[i : i + per]]
        for i in range(0, len(combinations), per)
    ]
    plugin.configure_plugin(ends[: len(given)], ends[len(given) :])
    tactics = plugin.get_valid_tactics()
    plugin.set_tactic(0)
    # what it wraps in C++ is a number here
    sys.modules["tensorrt.plugin._tensor"].SymExprImpl = lambda symbol: symbol._expr
    launch, counts = SimpleNamespace(), {}
    setter = Setter(counts)
    plugin.get_launch_params(shapes, ends, len(given), launch, setter, builder)
    flat = [e.desc for e in ends]
    entry, ptx = plugin.get_kernel(flat[: len(given)], flat[len(given) :])
    return {
        "kind": type(plugin).__name__,
        "outputs": [[n.value for n in sizes] for sizes in found],
        "types": [str(kind) for kind in outputs],
        "offered": offered,
        "wanted": [str(kind) for kind in (*types, *outputs)],
        "tactics": tactics,
        "grid": [getattr(launch, f"grid_{axis}").value for axis in "xyz"],
        "threads": launch.block_x.value,
        "shared": launch.shared_mem.value,
        "counts": [counts[i].value for i in range(setter.nbSymExprs)],
        "entry": entry,
        "ptx": ptx.decode(),
    }


class Setter:
    nbSymExprs = 0

    def __init__(self, counts: dict) -> None:
        self.counts = counts

    def __setitem__(self, index, value):
        self.counts[index] = value


def main(folder: Path, sm: int) -> None:
    trt, trtp = bindings(folder)
    names, registry = declared(trt, trtp, sm)
    symbols(trt, trtp)
    builder = sys.modules["tensorrt.plugin._tensor"].SymIntExpr._exprBuilder
    given = arguments(scene())
    attributes = {"heads": HEADS, "scale": HEAD_DIM**-0.5, "ratio": 0.5, "eps": 1e-6}
    constants = {HEADS, HEAD_DIM, HEADS * HEAD_DIM, TEXT}
    found: dict = {"declared": [list(key) for key in registry.creators], "plugins": {}}
    for name in names:
        creator = registry.get_creator(name, "1", "lumosx")
        plugin = drive(trt, builder, creator, given[name], attributes, constants)
        plugin["fields"] = [field.name for field in creator.field_names]
        plugin["assembles"] = assembles(plugin.pop("ptx"), folder, sm)
        found["plugins"][name] = plugin
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

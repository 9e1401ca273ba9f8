"""Run by test_plugins.py in a process of its own: TensorRT's real bindings over empty libraries.

Registers the plugins and asks each for its code at the sizes of a real scene. Symbolic sizes are
numbers in disguise: they refuse to be taken for constants, but tell their value in the end. What
comes out is compared with what our own launchers hand to Triton. Prints JSON.
"""

import ctypes
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from lumosx_rt.kernels import (
    qk_norm_rope,
    relational_attention,
    relational_cross_attention,
    tiles,
)
from lumosx_rt.kernels.plugins.tensorrt import register
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import structure_of

SM, HEADS, HEAD_DIM, TEXT, SEEDS = 90, 12, 128, 512, 3
LIBRARIES = ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin")


def bindings(folder: Path):
    """The modules tensorrt and tensorrt.plugin, their libraries replaced by stubs in `folder`."""
    source = Path(__file__).with_name("stub_tensorrt.c")
    for name in LIBRARIES:
        library = folder / f"{name}.so.11"
        soname = f"-Wl,-soname,{library.name}"
        subprocess.run(["gcc", "-shared", "-fPIC", soname, "-o", library, source], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_bindings as trt

    sys.modules["tensorrt"] = trt  # another wheel's name for the same
    plugin = Path(trt.__file__).parent / "plugin"
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", plugin / "__init__.py", submodule_search_locations=[str(plugin)]
    )
    assert spec is not None and spec.loader is not None
    trt.plugin = sys.modules["tensorrt.plugin"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trt.plugin)
    return trt, trt.plugin


class Registry:
    """In place of TensorRT's: what was declared to it."""

    def __init__(self) -> None:
        self.creators = {}

    def register_creator(self, creator, namespace):
        assert creator.plugin_namespace == namespace
        key = (creator.name, creator.plugin_version, namespace)
        assert key not in self.creators, "a creator is declared once"
        self.creators[key] = creator

    def get_creator(self, name, version, namespace):
        return self.creators[name, version, namespace]


def declared(trt, trtp, sm: int) -> tuple[list[str], Registry]:
    """All plugins, declared as a build declares them."""
    found = Registry()
    trt.get_plugin_registry = lambda: found
    return register(trt, trtp, sm), found


def symbols(trt, trtp):
    """What describes a tensor with symbolic sizes, and what reads a symbol's value."""

    class Number:
        """In place of TensorRT's own expressions, which only its builder makes."""

        def __init__(self, value: int, constant: bool) -> None:
            self.value, self.constant = value, constant

        def is_constant(self) -> bool:
            return self.constant

        def get_constant_value(self) -> int:
            assert self.constant, "a symbol was taken for a constant"
            return self.value

    trt.IDimensionExpr = Number
    operations = {
        trt.DimensionOperation.SUM: lambda a, b: a + b,
        trt.DimensionOperation.SUB: lambda a, b: a - b,
        trt.DimensionOperation.PROD: lambda a, b: a * b,
        trt.DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
        trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
    }

    class Builder:
        def constant(self, value: int) -> Number:
            return Number(value, True)

        def operation(self, kind, a: Number, b: Number) -> Number:
            return Number(operations[kind](a.value, b.value), a.constant and b.constant)

    sys.modules["tensorrt.plugin._tensor"].SymIntExpr._exprBuilder = Builder()
    sys.modules["tensorrt.plugin._tensor"].ShapeExpr._exprBuilder = Builder()

    def describe(tensor: torch.Tensor, dynamic: bool):
        known = {HEADS, HEAD_DIM, HEADS * HEAD_DIM, TEXT} if dynamic else set(tensor.shape)
        sizes = [trtp.ShapeExpr(Number(size, size in known)) for size in tensor.shape]
        names = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.int64: "int64"}
        names[torch.bool] = "bool"
        return trtp.TensorDesc(
            trtp.ShapeExprs.from_tuple(tuple(sizes)), getattr(trt, names[tensor.dtype])
        )

    return describe, lambda size: size if isinstance(size, int) else size._expr.value


def scene() -> dict[str, torch.Tensor]:
    """Tensors of one call at 480p, without memory: streams of different groupings, seeds."""
    layouts = [SceneLayout.from_key(key) for key in ("21x30x52+1+4", "21x30x52+2+2.1")]
    first = layouts[0]
    small = structure_of([SceneLayout.from_key(k) for k in ("1x2x2+1+4", "1x2x2+2+2.1")], HEAD_DIM)
    heads = (HEADS, HEAD_DIM)
    references = first.references * first.frame_tokens
    shapes = {
        "video": (2 * SEEDS, first.video_tokens, *heads),
        "condition": (2, references, *heads),
        "text": (2, TEXT, *heads),
        "table": (2, HEADS, first.references, first.tiles, TEXT),
        "x": (2, references, HEADS * HEAD_DIM),
        "weight": (HEADS * HEAD_DIM,),
    }
    found = {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in shapes.items()}
    found["template"] = torch.empty(2, first.references, TEXT, device="meta")
    found["tile_pool"] = torch.empty(first.tiles, 30, 52, device="meta")
    found["bias_tiles"] = torch.empty(30, 52, dtype=torch.int64, device="meta")
    found["rope"] = torch.empty(2, 2, references, HEAD_DIM // 2, device="meta")
    for name in ("group_index", "group_mask", "group_inverse"):
        found[name] = getattr(small, name).to("meta")
    return found


def recorded(launch, *arguments) -> dict[str, dict]:
    """What a launcher hands to Triton: by kernel, its grid and its arguments by name."""
    calls: dict[str, dict] = {}

    def record(kernel, grid):
        def call(*positional, **named):
            names = dict(zip(kernel.arg_names, positional, strict=False))
            counts = {n: v for n, v in names.items() if isinstance(v, int)}
            calls[kernel.__name__ + str(len(calls))] = {"grid": list(grid), **counts}

        return call

    modules = (relational_attention, relational_cross_attention, qk_norm_rope)
    with patch.object(tiles, "architecture_of", lambda device: SM):
        for module in modules:
            module.launcher = record
        for module in (relational_attention, relational_cross_attention):
            module.processors = lambda device: 132
        launch(*arguments)
    return calls


def main(folder: Path) -> None:
    trt, trtp = bindings(folder)
    names, _ = declared(trt, trtp, SM)
    describe, value = symbols(trt, trtp)
    registry = sys.modules["tensorrt.plugin._lib"].QDP_REGISTRY
    t = scene()
    groups = [t[n] for n in ("group_index", "group_mask", "group_inverse")]
    video, condition, text = t["video"], t["condition"], t["text"]
    qkv = [video] * 3
    given = {
        "QkNormRope": [t["x"], t["weight"], t["rope"]],
        "RelationalAttention": [*qkv, *[condition] * 3, t["bias_tiles"], *groups],
        "VideoAttention": [*qkv, condition, condition, t["bias_tiles"], *groups],
        "RelationalBias": [condition, text, t["template"], t["tile_pool"], t["bias_tiles"]],
        "RelationalCrossAttention": [condition, text, text, t["table"], t["bias_tiles"]],
    }
    attributes = {
        "QkNormRope": {"heads": HEADS, "eps": 1e-6},
        "RelationalBias": {"heads": HEADS, "ratio": 0.5, "scale": HEAD_DIM**-0.5},
    }
    found: dict = {"names": names, "plugins": {}}
    for name in names:
        plugin = registry[f"lumosx::{name}"]
        inputs = [describe(tensor, True) for tensor in given[name]]
        own = attributes.get(name, {"heads": HEADS, "scale": HEAD_DIM**-0.5})
        outputs = plugin.register_func(*inputs, **own)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        entry, ptx, params, counts = plugin.aot_impl_func(*inputs, **own, outputs=outputs, tactic=0)
        header = ptx.split(".entry", 1)[1].split(")", 1)[0]
        found["plugins"][name] = {
            "outputs": [[value(size) for size in out.shape_expr] for out in outputs],
            "combinations": len(plugin.autotune_func(*inputs, outputs=outputs)),
            "grid": [value(getattr(params, f"grid_{axis}")) for axis in "xyz"],
            "threads": value(params.block_x),
            "shared": value(params.shared_mem),
            "counts": [value(count) for count in counts],
            "parameters": header.count(".param"),
            "arguments": len(inputs) + len(counts) + len(outputs),
            "entry": entry,
            "assembles": assembles(ptx, folder),
        }

    frame = video.shape[1] // 21
    attend = (*qkv, condition, condition, condition, *groups, frame, False)
    found["launched"] = {
        "RelationalAttention": recorded(relational_attention._launch, *attend),
        "VideoAttention": recorded(
            relational_attention._launch, *qkv, None, condition, condition, *groups, frame, False
        ),
        "cross": recorded(
            relational_cross_attention._launch,
            video, condition, text, text, t["template"], t["bias_tiles"], 0.5,
        ),
        "QkNormRope": recorded(
            qk_norm_rope._launch, t["x"], t["weight"], t["rope"], HEADS, 1e-6
        ),
    }  # fmt: skip
    found["refused"] = refusal(trtp)
    print(json.dumps(found))


def assembles(ptx: str, folder: Path, sm: int = SM) -> bool:
    """Whether NVIDIA's assembler takes the code."""
    import triton

    file = folder / "plugin.ptx"
    file.write_text(ptx)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"
    (target,) = re.findall(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert target.removesuffix("a") == f"sm_{sm}", target
    command = [tool, f"--gpu-name={target}", file, "-o", folder / "plugin.cubin"]
    return subprocess.run(command, capture_output=True).returncode == 0


def refusal(trtp) -> str:
    """Control: an implementation whose signature is not the registered one."""
    try:

        @trtp.aot_impl("lumosx::QkNormRope")
        def wrong(x: trtp.TensorDesc, weigth: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]):
            return None
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))

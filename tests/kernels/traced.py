"""Run by test_registration.py in a process of its own, with Triton uninterpreted.

Checks operators as a GPU has them: on CPU tensors (their plain branch), and traced with tensors
that claim to be on an sm_90, through the same functionalization that compilers use. Prints JSON.
"""

import json
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import nn
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.nn.attention import SDPBackend, sdpa_kernel

from lumosx_rt.kernels import (
    norm_modulate,
    qk_norm_rope,
    relational_attention,
    relational_cross_attention,
    tiles,
)
from lumosx_rt.kernels.linear_fp8 import GeluQuantize
from lumosx_rt.kernels.numerics import INTERPRETED
from lumosx_rt.kernels.self_attention import NAMES, self_attention
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import (
    QKV,
    Attended,
    CrossAttention,
    NormModulate,
    QkNormRope,
    SelfAttention,
    SelfAttentionOp,
    WordBias,
)
from tests.kernels.cases import Case, random

EPS = 1e-6


def calls(case: Case, dtype: torch.dtype, attend: SelfAttentionOp = ops.self_attention):
    """Every operator, as a function of the tensors it is given here."""
    width = case.heads * case.head_dim
    batch, tokens = case.video.k.shape[:2]
    x, delta = random(batch, tokens, width, seed=1), random(batch, tokens, width, seed=2)
    row, weight = random(batch, 1, width, seed=3), random(width, seed=4, dtype=dtype)
    rope = case.structure.rope_video.flatten(1, 3).unsqueeze(1)
    structure, groups = case.structure, case.structure[4:]

    def call_of(q, k, v, cq, ck, cv, index, mask, inverse, tile):
        own = structure._replace(
            bias_tiles=tile, group_index=index, group_mask=mask, group_inverse=inverse
        )
        return SelfAttention(QKV(q, k, v), QKV(cq, ck, cv), own)

    def attention(e4m3, *given):
        return relational_attention.relational_attention(call_of(*given), e4m3=e4m3)

    def groups_alone(*given):
        return (relational_attention.group_attention(call_of(*given)),)

    def cross(q, cq, k, v, template, tile, inverse):
        own = structure._replace(bias_tiles=tile, group_inverse=inverse)
        bias = WordBias(template, 0.5)
        call = CrossAttention(q, cq, k, v, bias, own)
        return relational_cross_attention.relational_cross_attention(call)

    qkv = (*case.video, *case.condition, *groups, structure.bias_tiles)
    text = (case.video.q, case.condition.q, case.k, case.v, case.bias.template)
    return {
        "norm_modulate": (
            lambda x, d, g: norm_modulate.norm_modulate(NormModulate(x, d, g, g, g, EPS, dtype)),
            (x, delta.to(dtype), row),
        ),
        "norm_modulate_quantized": (
            lambda x, d, g: norm_modulate.norm_modulate_quantized(
                NormModulate(x, d, g, g, g, EPS, dtype)
            ),
            (x, delta.to(dtype), row),
        ),
        "qk_norm_rope": (
            lambda x, w, r: (qk_norm_rope.qk_norm_rope(QkNormRope(x, w, r, case.heads, EPS)),),
            (delta.to(dtype), weight, rope),
        ),
        "relational_attention": (lambda *a: attention(False, *a), qkv),
        "relational_attention_e4m3": (lambda *a: attention(True, *a), qkv),
        "group_attention": (groups_alone, qkv),
        "self_attention": (lambda *given: attend(call_of(*given)), qkv),
        "relational_cross_attention": (
            cross,
            (*text, structure.bias_tiles, structure.group_inverse),
        ),
        "gelu_quantize": (lambda x: tuple(GeluQuantize()(x)), (delta.to(dtype),)),
    }


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return flat(self.function(*tensors))


def flat(outputs):
    for output in outputs:
        assert output is not None
    return tuple(x for out in outputs for x in (out if isinstance(out, tuple) else (out,)))


@contextmanager
def on_a_gpu(mode: AbstractContextManager):
    """Fake tensors, and tiles as on an sm_90."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(tiles, "architecture_of", lambda device: 90))
        for module in (relational_attention, relational_cross_attention):
            stack.enter_context(patch.object(module, "processors", lambda device: 132))
        stack.enter_context(mode)
        yield


def launches(function, tensors) -> Counter:
    """How often each operator and Triton kernel stands in the functionalized trace."""
    with on_a_gpu(FakeTensorMode()):
        fakes = [torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in tensors]
        graph, _ = aot_export_module(Call(function), fakes, trace_joint=False)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return Counter(t for t in targets if "triton" in t or "lumosx" in t)


SHAPES = {
    "norm_modulate": ["b t c", "b t c", "b 1 c"],
    "norm_modulate_quantized": ["b t c", "b t c", "b 1 c"],
    "qk_norm_rope": ["s r c", "c", "2 s r p"],
    "relational_attention": [*["b t H D"] * 3, *["s r H D"] * 3, "s g m", "s g m", "s R", "h w"],
    "relational_cross_attention": [
        "b t H D", "s r H D", "s L H D", "s L H D", "s R L", "h w", "s R",
    ],
    "gelu_quantize": ["b t c"],
}  # fmt: skip
SHAPES["relational_attention_e4m3"] = SHAPES["relational_attention"]
SHAPES["group_attention"] = SHAPES["relational_attention"]


LIMITS = {
    "s": (2, 1, 64), "e": (3, 1, 64), "f": (5, 1, 1023), "h": (7, 1, 1023), "w": (11, 1, 1023),
    "R": (4, 0, 64), "g": (6, 1, 64), "m": (8, 1, 1000),
}  # fmt: skip
PRODUCTS = {"b": "s e", "t": "f h w", "r": "R h w"}


class Joined(Call):
    """A call whose inputs come with streams and seeds, frames, height and width apart."""

    def __init__(self, function, shapes: list[str]) -> None:
        super().__init__(function)
        self.shapes = [shape.split() for shape in shapes]

    def forward(self, *tensors):
        joined = []
        for tensor, shape in zip(tensors, self.shapes, strict=True):
            for i, axis in enumerate(shape):
                if axis in PRODUCTS:
                    tensor = tensor.flatten(i, i + PRODUCTS[axis].count(" "))
            joined.append(tensor)
        return flat(self.function(*joined))


def ranges(name: str, function, tensors, case: Case) -> dict[str, list[int]]:
    """Exports a GPU's branch once for all streams, seeds, frames, sizes, references, groups and
    members, and says which ranges the export left them: [least, most]."""
    dims = {axis: Dim(axis, min=low, max=high) for axis, (_, low, high) in LIMITS.items()}
    fixed = {"H": case.heads, "D": case.head_dim, "L": case.k.shape[1]}
    fixed |= {"c": case.heads * case.head_dim, "p": case.head_dim // 2}
    shapes = [
        [axis for part in shape.split() for axis in PRODUCTS.get(part, part).split()]
        for shape in SHAPES[name]
    ]
    hints = {axis: hint for axis, (hint, _, _) in LIMITS.items()} | fixed
    with on_a_gpu(FakeTensorMode()):
        given = tuple(
            torch.empty([hints.get(a) or int(a) for a in axes], dtype=t.dtype, device="cuda")
            for axes, t in zip(shapes, tensors, strict=True)
        )
        program = torch.export.export(
            Joined(function, SHAPES[name]),
            given,
            dynamic_shapes=(
                tuple({i: dims[a] for i, a in enumerate(x) if a in dims} for x in shapes),
            ),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    left = program.range_constraints
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    found: dict[str, list[int]] = {}
    for node, axes in zip(inputs, shapes, strict=True):
        for axis, size in zip(axes, node.meta["val"].shape, strict=True):
            if axis in dims and isinstance(size, int):
                found[axis] = [size, size]  # specialised: not what is wanted
            elif axis in dims and size.node.expr in left:
                bounds = left[size.node.expr]
                found.setdefault(axis, [int(bounds.lower), int(bounds.upper)])
    return found


def attention_calls(attend: SelfAttentionOp, case: Case) -> list[str]:
    """Which of torch's own attentions stand in an exported program, in order.

    On the device "meta", which like a GPU is not a CPU: a torch for CPUs traces no more on "cuda".
    """
    function, tensors = calls(case, torch.bfloat16, attend)["self_attention"]
    with on_a_gpu(nullcontext()):
        given = tuple(tensor.to("meta") for tensor in tensors)
        program = torch.export.export(Call(function), given)
    targets = (str(n.target) for n in program.graph.nodes if n.op == "call_function")
    return [target for target in targets if "scaled_dot_product" in target]


def by_context(call: SelfAttention) -> Attended:
    """The way that does not survive: a context around a call that leaves the choice to torch."""
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return ops.self_attention(call)


def main() -> None:
    assert not INTERPRETED
    found = {}
    every = calls(Case("frames of one tile"), torch.float32)
    del every["self_attention"]  # no operator
    for name, (function, tensors) in every.items():
        exported = torch.export.export(Call(function), tensors)
        eager = flat(function(*tensors))
        again = exported.module()(*tensors)
        found[name] = {
            "exported": sum("lumosx" in str(n.target) for n in exported.graph.nodes),
            "differs": max(
                float((a.float() - b.float()).abs().max())
                for a, b in zip(eager, again, strict=True)
            ),
        }
    case = Case("frames of one tile")
    call = SelfAttention(case.video, case.condition, case.structure)
    video, condition = relational_attention.relational_attention(call)
    plain = ops.self_attention(call)
    found["relational_attention"]["is the plain one"] = torch.equal(video, plain[0])
    half = calls(Case("frames of one tile"), torch.bfloat16)
    del half["self_attention"]
    for name, (function, tensors) in half.items():
        found[name]["launches"] = dict(launches(function, tensors))
        found[name]["ranges"] = ranges(name, function, tensors, case)
    case = Case("frames of one tile", torch.bfloat16)
    named = {name: self_attention(name) for name in NAMES if name not in ("flex", "reference")}
    found["attention calls"] = {
        name: attention_calls(attend, case) for name, attend in {**named, "": by_context}.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

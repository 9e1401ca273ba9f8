"""Run by test_registration.py in a process of its own, with Triton uninterpreted.

Checks operators as a GPU has them: on CPU tensors (their plain branch), and traced with tensors
that claim to be on an sm_90, through the same functionalization that compilers use. Prints JSON.
"""

import json
from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import nn
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode

from lumosx_rt.kernels import (
    norm_modulate,
    qk_norm_rope,
    relational_attention,
    relational_cross_attention,
    tiles,
)
from lumosx_rt.kernels.linear_fp8 import GeluQuantize
from lumosx_rt.kernels.numerics import INTERPRETED
from lumosx_rt.reference import ops
from lumosx_rt.reference.ops import QKV, WordBias
from tests.kernels.cases import Case, random

EPS = 1e-6


def calls(case: Case, dtype: torch.dtype):
    """Every operator, as a function of the tensors it is given here."""
    width = case.heads * case.head_dim
    batch, tokens = case.video.k.shape[:2]
    x, delta = random(batch, tokens, width, seed=1), random(batch, tokens, width, seed=2)
    row, weight = random(batch, 1, width, seed=3), random(width, seed=4, dtype=dtype)
    rope = case.structure.rope_video.flatten(1, 3).unsqueeze(1)
    structure, groups = case.structure, case.structure[4:]

    def attention(e4m3, *given):
        q, k, v, cq, ck, cv, *groups, tile = given
        own = structure._replace(
            bias_tiles=tile, group_index=groups[0], group_mask=groups[1], group_inverse=groups[2]
        )
        return relational_attention.relational_attention(
            QKV(q, k, v), QKV(cq, ck, cv), own, e4m3=e4m3
        )

    def cross(q, cq, k, v, template, tile, inverse):
        own = structure._replace(bias_tiles=tile, group_inverse=inverse)
        bias = WordBias(template, 0.5)
        return relational_cross_attention.relational_cross_attention(q, cq, k, v, bias, own)

    qkv = (*case.video, *case.condition, *groups, structure.bias_tiles)
    text = (case.video.q, case.condition.q, case.k, case.v, case.bias.template)
    return {
        "norm_modulate": (
            lambda x, d, g: norm_modulate.norm_modulate(x, d, g, g, g, EPS, dtype),
            (x, delta.to(dtype), row),
        ),
        "norm_modulate_quantized": (
            lambda x, d, g: norm_modulate.norm_modulate_quantized(x, d, g, g, g, EPS),
            (x, delta.to(dtype), row),
        ),
        "qk_norm_rope": (
            lambda x, w, r: (qk_norm_rope.qk_norm_rope(x, w, r, case.heads, EPS),),
            (delta.to(dtype), weight, rope),
        ),
        "relational_attention": (lambda *a: attention(False, *a), qkv),
        "relational_attention_e4m3": (lambda *a: attention(True, *a), qkv),
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


def launches(function, tensors) -> Counter:
    """How often each operator and Triton kernel stands in the functionalized trace."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(tiles, "architecture_of", lambda device: 90))
        for module in (relational_attention, relational_cross_attention):
            stack.enter_context(patch.object(module, "processors", lambda device: 132))
        stack.enter_context(FakeTensorMode())
        fakes = [torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in tensors]
        graph, _ = aot_export_module(Call(function), fakes, trace_joint=False)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return Counter(t for t in targets if "triton" in t or "lumosx" in t)


def main() -> None:
    assert not INTERPRETED
    found = {}
    for name, (function, tensors) in calls(Case("frames of one tile"), torch.float32).items():
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
    video, condition = relational_attention.relational_attention(
        case.video, case.condition, case.structure
    )
    plain = ops.self_attention(case.video, case.condition, case.structure, "")
    found["relational_attention"]["is the plain one"] = torch.equal(video, plain[0])
    for name, (function, tensors) in calls(Case("frames of one tile"), torch.bfloat16).items():
        found[name]["launches"] = dict(launches(function, tensors))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Plugins: declared to TensorRT's real bindings, launched as our own launchers do, and right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from lumosx_rt.kernels.plugins import launches
from lumosx_rt.kernels.plugins.tensorrt import without_hidden_parameters
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import CrossAttention, QkNormRope, SelfAttention
from tests.helpers.budget import assert_within_budget
from tests.kernels.cases import Case, double, random

ROOT = Path(__file__).parents[2]
SM = 90
BF16 = torch.bfloat16
COUNTS = {  # by a plugin's order, as our launchers name them
    "RelationalAttention": [
        "items", "video_items", "video_tokens", "condition_tokens", "frame_tokens", "seeds",
        "groups", "members",
    ],
    "VideoAttention": [
        "items", "video_tokens", "condition_tokens", "frame_tokens", "seeds", "groups", "members",
    ],
    "RelationalBias": ["references", "height", "width", "tiles", "text_len"],
    "RelationalCrossAttention": ["items", "tokens", "share", "tiles", "text_len"],
    "QkNormRope": ["tokens", "rope_stride", "sine_offset"],
}  # fmt: skip


@pytest.fixture(scope="module")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `plugged.py` finds out in a process without Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.plugged", str(tmp_path_factory.mktemp("stub"))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_exported_node_has_a_plugin(plugged: dict) -> None:
    from lumosx_rt.export.onnx.opaque_nodes import operations
    from lumosx_rt.reference.backbones.config import PRESETS

    assert set(plugged["names"]) == set(operations(PRESETS["tiny"]))


@pytest.mark.parametrize("name", COUNTS)
def test_a_plugin_launches_what_our_launcher_does(plugged: dict, name: str) -> None:
    plugin = plugged["plugins"][name]
    if name in ("RelationalBias", "RelationalCrossAttention"):
        calls = plugged["launched"]["cross"]
        (own,) = (
            call
            for kernel, call in calls.items()
            if kernel.startswith("table") == (name == "RelationalBias") and call["tiles"]
        )
    else:
        (own,) = plugged["launched"][name].values()
    assert plugin["grid"][: len(own["grid"])] == own["grid"]
    assert set(plugin["grid"][len(own["grid"]) :]) <= {1}
    assert plugin["counts"] == [own[count] for count in COUNTS[name]]


@pytest.mark.parametrize("name", COUNTS)
def test_the_code_takes_what_a_plugin_passes(plugged: dict, name: str) -> None:
    plugin = plugged["plugins"][name]
    assert plugin["assembles"] and plugin["parameters"] == plugin["arguments"]
    assert plugin["threads"] in (128, 256) and plugin["shared"] <= 232_448
    assert plugin["combinations"] == 1 and plugin["entry"]


def test_outputs_have_the_shapes_of_the_operations(plugged: dict) -> None:
    shapes = {name: plugin["outputs"] for name, plugin in plugged["plugins"].items()}
    assert shapes["RelationalAttention"] == [[6, 32760, 12, 128], [2, 7800, 12, 128]]
    assert shapes["RelationalBias"] == [[2, 12, 5, 28, 512]]
    assert shapes["QkNormRope"] == [[2, 7800, 12, 128]]


def test_tensorrt_refuses_another_signature(plugged: dict) -> None:
    """Control: the bindings do look at what they are given."""
    assert "Unexpected tensor 'weigth'" in plugged["refused"]


def test_code_that_needs_scratch_is_refused() -> None:
    ptx = """.visible .entry k(
        .param .u64 k_param_0,
        .param .u64 k_param_1,
        .param .u64 k_param_2
    )
    { ld.param.u64 %rd1, [k_param_0]; }"""
    kept = without_hidden_parameters(ptx)
    assert "k_param_0" in kept and "k_param_1" not in kept and kept.count(".param .u64") == 1
    with pytest.raises(ValueError, match="reads k_param_2"):
        without_hidden_parameters(ptx.replace("[k_param_0]", "[k_param_2]"))


# -- the entry points compute what they stand for --------------------------------------------------


def run(launch: launches.Launch, inputs: list, outputs: list) -> None:
    launch.specialization.kernel[launch.grid](
        *inputs, *launch.counts, *outputs, **launch.specialization.constants
    )


def shapes_of(**tensors: torch.Tensor) -> dict:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def test_self_attention_entries() -> None:
    case = Case("streams with their own groups", BF16, head_dim=32)
    video, condition, structure = case.video, case.condition, case.structure
    groups = [structure.group_index, structure.group_mask.view(torch.uint8)]
    groups += [structure.group_inverse]
    names = ("group_index", "group_mask", "group_inverse")
    shapes = shapes_of(q=video.q, ck=condition.k, bias_tiles=structure.bias_tiles)
    shapes |= shapes_of(**dict(zip(names, groups, strict=True)))
    known = (BF16, case.heads, case.head_dim, SM, triton.cdiv)
    exact = ops.self_attention(SelfAttention(double(video), double(condition), structure))
    plain = ops.self_attention(SelfAttention(video, condition, structure))

    out, cout = torch.empty_like(video.q), torch.empty_like(condition.q)
    inputs = [*video, *condition, structure.bias_tiles, *groups]
    run(launches.relational_self(shapes, *known), inputs, [out, cout])
    for part, *results in zip(("video", "condition"), (out, cout), plain, exact, strict=True):
        assert_within_budget(part, *results)

    alone = torch.empty_like(video.q)
    inputs = [*video, condition.k, condition.v, structure.bias_tiles, *groups]
    run(launches.video_self(shapes, *known), inputs, [alone])
    assert torch.equal(alone, out)


def test_cross_attention_entries() -> None:
    case = Case("wide frames", BF16, head_dim=32)
    q, k, v, structure = case.condition.q, case.k, case.v, case.structure
    references, frame = structure.group_inverse.shape[1], structure.bias_tiles.numel()
    table = torch.empty(
        1, case.heads, references, structure.tile_pool.shape[0], k.shape[1], dtype=BF16
    )
    shapes = shapes_of(
        template=case.bias.template,
        tile_pool=structure.tile_pool,
        table=table,
        bias_tiles=structure.bias_tiles,
    )
    known = (BF16, case.heads, case.head_dim)
    inputs = [q, k, case.bias.template, structure.tile_pool, structure.bias_tiles]
    run(launches.bias_table(shapes, *known, case.bias.ratio, triton.cdiv), inputs, [table])
    out = torch.empty_like(q)
    inputs = [q, k, v, table, structure.bias_tiles]
    run(launches.reference_cross(shapes, *known, SM, triton.cdiv), inputs, [out])
    assert frame * references == q.shape[1]
    call = CrossAttention(case.video.q, q, k, v, case.bias, structure)
    _, plain = ops.cross_attention(call)
    wide = (x.double() for x in (case.video.q, q, k, v))
    bias = case.bias._replace(template=case.bias.template.double())
    _, exact = ops.cross_attention(CrossAttention(*wide, bias, case.exact_structure()))
    assert_within_budget("references", out, plain, exact)


@pytest.mark.parametrize("rows", [1, 3])
def test_norm_and_rotation_entry(rows: int) -> None:
    x, weight = random(3, 5, 64, seed=1, dtype=BF16) * 3, random(64, seed=2, dtype=BF16) + 1
    rope = random(2, rows, 5, 16, seed=3)
    out = torch.empty(3, 5, 2, 32, dtype=BF16)
    launch = launches.norm_rope(shapes_of(x=x, rope=rope), BF16, 2, 64, 1e-6, SM, triton.cdiv)
    run(launch, [x, weight, rope], [out])
    plain = ops.qk_norm_rope(QkNormRope(x, weight, rope, 2, 1e-6))
    wide = (part.double() for part in (x, weight, rope))
    exact = ops.qk_norm_rope(QkNormRope(*wide, 2, 1e-6))
    assert_within_budget("y", out, plain, exact)

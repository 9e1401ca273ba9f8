"""Plugins through TensorRT's own plugin classes, for a GPU that takes another's tiles (sm_103)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from lumosx_rt.kernels.plugins import launches
from tests.kernels.driven import arguments
from tests.kernels.plugged import HEAD_DIM, HEADS, scene

ROOT = Path(__file__).parents[2]
SM, TILES = 103, 100
NAMES = (
    "QkNormRope", "RelationalAttention", "VideoAttention", "RelationalBias",
    "RelationalCrossAttention",
)  # fmt: skip
FIELDS = {"QkNormRope": ["heads", "eps"], "RelationalBias": ["heads", "ratio", "scale"]}


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `driven.py` finds out in a process without Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    folder = tmp_path_factory.mktemp("stub")
    command = [sys.executable, "-m", "tests.kernels.driven", str(folder), str(SM)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected_launch(name: str) -> launches.Launch:
    """The launch at these sizes, computed with plain integers."""
    given = arguments(scene())[name]
    bf16, known = torch.bfloat16, (HEADS, HEAD_DIM)
    if name == "QkNormRope":
        shapes = {"x": given[0].shape, "rope": given[2].shape}
        width = HEADS * HEAD_DIM
        return launches.norm_rope(shapes, bf16, HEADS, width, 1e-6, TILES, triton.cdiv)
    if name == "RelationalBias":
        shapes = {"template": given[2].shape, "tile_pool": given[3].shape}
        return launches.bias_table(shapes, bf16, *known, 0.5, triton.cdiv)
    if name == "RelationalCrossAttention":
        shapes = {"table": given[3].shape, "bias_tiles": given[4].shape}
        return launches.reference_cross(shapes, bf16, *known, TILES, triton.cdiv)
    ck, tiles, index, _, inverse = given[-6], *given[-4:]
    shapes = {"q": given[0].shape, "ck": ck.shape, "bias_tiles": tiles.shape}
    shapes |= {"group_index": index.shape, "group_inverse": inverse.shape}
    own = launches.relational_self if name == "RelationalAttention" else launches.video_self
    return own(shapes, bf16, *known, TILES, triton.cdiv)


def test_plugins_are_where_the_parser_looks(driven: dict) -> None:
    """In the registry, by the op type and the domain of the exported nodes."""
    assert driven["declared"] == [[name, "1", "lumosx"] for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_is_asked_as_tensorrt_asks_it(driven: dict, name: str) -> None:
    plugin = driven["plugins"][name]
    assert plugin["kind"] == "_TemplateAOTPlugin"  # its code goes into the plan
    assert plugin["fields"] == FIELDS.get(name, ["heads", "scale"])
    wanted = [[kind, "TensorFormat.LINEAR"] for kind in plugin["wanted"]]
    assert wanted in plugin["offered"] and plugin["tactics"] == []
    assert len(plugin["offered"]) == 2  # all in bf16, all in fp16
    assert plugin["assembles"]
    launch = expected_launch(name)
    assert plugin["grid"] == [*launch.grid] and plugin["counts"] == [*launch.counts]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_typed_and_sized_as_inputs_say(driven: dict, name: str) -> None:
    plugin, given = driven["plugins"][name], arguments(scene())[name]
    like = {"RelationalAttention": (0, 3), "VideoAttention": (0,), "RelationalCrossAttention": (0,)}
    own = {
        "QkNormRope": [[*given[0].shape[:2], HEADS, HEAD_DIM]],
        "RelationalBias": [[2, HEADS, 5, 28, 512]],
    }
    expected = own.get(name) or [[*given[i].shape] for i in like[name]]
    assert plugin["outputs"] == expected
    assert set(plugin["types"]) == {"DataType.BF16"}

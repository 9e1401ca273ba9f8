"""The operators as torch sees them: schemas, fakes, autograd, export; interpreted and not."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

from tests.kernels.cases import Case
from tests.kernels.traced import LIMITS, calls

NAMES = (
    "norm_modulate",
    "norm_modulate_quantized",
    "qk_norm_rope",
    "relational_attention",
    "relational_attention_e4m3",
    "group_attention",
    "relational_cross_attention",
    "gelu_quantize",
)
SLOW = pytest.mark.slow  # the interpreter takes seconds for each
SMALL = {"heads": 1, "head_dim": 32, "seeds": 1}


@pytest.fixture(scope="module")
def uninterpreted() -> dict[str, dict]:
    """What `traced.py` finds out in a process without Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.traced"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_on_a_cpu_it_exports_as_one_operator_and_computes_the_plain_formulation(
    name: str, uninterpreted: dict[str, dict]
) -> None:
    found = uninterpreted[name]
    assert found["exported"] >= 1 and found["differs"] == 0
    assert found.get("is the plain one", True)


@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu_compilers_see_the_kernels_inside(
    name: str, uninterpreted: dict[str, dict]
) -> None:
    kernels = {"relational_attention_e4m3": 5, "relational_cross_attention": 3}.get(name, 1)
    assert uninterpreted[name]["launches"] == {"triton_kernel_wrapper_functional": kernels}


@pytest.mark.parametrize("name", NAMES)
def test_one_graph_serves_all_sizes_on_a_gpu(name: str, uninterpreted: dict[str, dict]) -> None:
    """Zero references, one stream and one seed included."""
    found = uninterpreted[name]["ranges"]
    assert found and found == {axis: list(LIMITS[axis][1:]) for axis in found}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("qk_norm_rope", "group_attention") else SLOW)
        for name in NAMES
    ],
)
def test_interpreted_operators_pass_opcheck(name: str, monkeypatch) -> None:
    """Every call of an operator that the function makes is checked on its own arguments."""
    function, tensors = calls(Case("frames of one tile", **SMALL), torch.float32)[name]
    recorded = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "lumosx":
                recorded.append((func, args))
            return func(*args, **(kwargs or {}))

    with Recorder():
        function(*tensors)
    assert recorded
    torch.use_deterministic_algorithms(False)  # opcheck compares runs, buffers included
    for operator, arguments in recorded:
        checks = ["test_autograd_registration", "test_faketensor"]
        # checking the schema does arithmetic on arguments, which torch lacks in e4m3
        if not any(getattr(a, "dtype", None) == torch.float8_e4m3fn for a in arguments):
            checks.append("test_schema")
        opcheck(operator, arguments, test_utils=checks)


def test_a_named_attention_is_that_in_an_exported_program(uninterpreted: dict[str, dict]) -> None:
    found = uninterpreted["attention calls"]
    generic = "aten.scaled_dot_product_attention.default"
    own = {
        name: f"aten._scaled_dot_product_{name}_attention.default"
        for name in ("flash", "cudnn", "efficient")
    }
    for name, call in own.items():
        assert found[f"hybrid:{name}"] == [call]
        assert found[f"split-sdpa:{name}"] == [call, generic]  # groups are masked
    assert found["hybrid"] == [generic] and found["split-sdpa"] == [generic, generic]
    assert found["triton"] == []
    assert found[""] == [generic, generic]  # control: what was asked for in a context is lost


def test_interpreted_operators_export() -> None:
    function, tensors = calls(Case("frames of one tile", **SMALL), torch.float32)["norm_modulate"]

    class Call(torch.nn.Module):
        def forward(self, *given):
            return function(*given)

    program = torch.export.export(Call(), tensors)
    for actual, expected in zip(program.module()(*tensors), function(*tensors), strict=True):
        assert torch.equal(actual, expected)

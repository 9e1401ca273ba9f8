"""Everything of the GPU path but values, on a GPU that launches nothing: minutes a torch.

`make nullgpu` builds what this needs; where it is not, the tests say so and are left out. What was
found last is in benchmarks/results/nullgpu.json, which the tests of every day read.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu.calls import CALLS
from tests.gpu.nullgpu.rehearse import PRECISIONS, home, rehearse, stage

ROOT = Path(__file__).parents[3]
RECORD = ROOT / "benchmarks/results/nullgpu.json"
TORCHES = ("2.11.0", "2.13.0")


def check(found: list[dict]) -> None:
    """What a rehearsal must have found."""
    of = {name: [facts for facts in found if facts["stage"] == name] for name in STAGES}
    assert all(of.values()), [name for name, rows in of.items() if not rows]
    # what is illegal on a GPU is refused by this one: nowhere but in the control of `threads`
    refused = {facts["stage"]: facts["refused"] for facts in found if facts["refused"]}
    assert set(refused) <= {"threads", "driver"}

    (driver,) = of["driver"]
    assert driver["gpu"]["capability"] == [9, 0] and driver["used_bytes"] >= 1 << 30
    assert "CUDA_ERROR_INVALID_DEVICE" in driver["another_gpu"]

    (fake,) = of["fake"]
    assert fake["blocks"] == 30 and fake["steps"] == 5 and fake["returned_to"] == ["cpu"]
    assert fake["encoded"] == [2, 16, 1, 60, 104] and fake["decoded"] == [1, 3, 9, 480, 832]
    assert "devices" in fake["mixed"]  # a control: tensors of two are refused

    (operators,) = of["operators"]
    assert len(operators["launches"]) == 8 and min(operators["launches"].values()) >= 2

    packages = {(p["precision"], p["blocks"]): p for p in of["package"]}
    assert {precision for precision, _ in packages} == set(PRECISIONS)
    for (precision, _), facts in packages.items():
        wanted = "triton, e4m3" if precision == "fp8-attention" else "hybrid:cudnn"
        assert facts["self_attention"] == wanted
    assert packages["bf16", 2]["megabytes"] > packages["fp8", 2]["megabytes"] > 100

    for served in of["serve"]:
        assert len(served["layouts"]) == 5
        for row in served["layouts"]:
            # a graph is replayed as one: nothing of it is launched by itself again
            assert row["launches"] > 50 and row["launches_replayed"] == 0
            if row["layout"].startswith("21x30x52"):  # the size that is planned
                assert row["allocated_gib"] <= row["reserved_gib"] <= row["planned_gib"], row

    (threads,) = of["threads"]
    assert threads["captured"] == 10 > threads["captured_in_mode_global"]  # the last a control

    (engine,) = of["engine"]
    assert engine["devices"] == {"vae": "{'cuda'}", "text_encoder": "{'cuda'}"}
    assert all(min(parts) > 0 for parts in engine["launches"].values())  # every part launched
    assert engine["served"] == 6 and engine["self_attention"]

    for suite in (facts for facts in found if facts["stage"] == "suite"):
        assert set(suite["rows"]) >= {
            name for call in suite["calls"] for name in CALLS[call].stages
        }
        # builds are compared with the reference, and zeros are not its numbers
        assert not [row for row in suite["failed"] if not row.startswith("end_to_end: ")]

    (training,) = of["training"]
    assert training["steps"] == 3 and 0 < training["resumed_at"] < 3 and training["launches"] > 1000


STAGES = ("driver", "fake", "operators", "package", "serve", "threads", "engine", "training")


@pytest.mark.slow
@pytest.mark.parametrize("torch", TORCHES)
def test_the_gpu_path_runs(torch: str) -> None:
    if not (home(torch) / "python").exists():
        pytest.skip(f"make nullgpu TORCH={torch} was not run")
    check(list(rehearse(torch)))


@pytest.mark.parametrize("torch", TORCHES)
def test_it_did_when_it_was_recorded(torch: str) -> None:
    found = json.loads(RECORD.read_text())["torch"][torch]
    check(found)
    assert {facts["torch"].partition("+")[0] for facts in found} == {torch}


@pytest.mark.parametrize(
    ("stage_name", "damage"),
    [
        ("engine", {"devices": {"vae": "{'cpu'}", "text_encoder": "{'cuda'}"}}),
        ("threads", {"captured": 9}),
        ("serve", {"refused": 1}),
        ("operators", {"launches": {}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_worse_finding_is_refused(stage_name: str, damage: dict) -> None:
    found = json.loads(RECORD.read_text())["torch"][TORCHES[0]]
    worse = [facts | damage if facts["stage"] == stage_name else facts for facts in found]
    with pytest.raises((AssertionError, ValueError)):
        check(worse)


@pytest.mark.slow
def test_a_build_without_headers_is_refused_before_it_begins() -> None:
    torch = TORCHES[-1]
    if not (home(torch) / "python").exists():
        pytest.skip(f"make nullgpu TORCH={torch} was not run")
    assert stage(torch, "driver")["gpu"]["name"].startswith("null GPU")
    launcher = (home(torch) / "python").read_text()
    code = "from lumosx_rt.backends.torch.toolchain import check_toolchain; check_toolchain('cuda')"
    for variable, said in (("CUDA_HOME", "cuda.h"), ("LIBRARY_PATH", "-lcuda")):
        broken = re.sub(rf'\b{variable}="[^"]*"', f'{variable}="/nowhere"', launcher)
        broken = broken.replace("LD_/nowhere", "LD_LIBRARY_PATH")
        done = subprocess.run(["sh", "-s", "--", "-c", code], input=broken, text=True,
                              capture_output=True, cwd=ROOT)  # fmt: skip
        assert done.returncode and "cannot be compiled here" in done.stderr
        assert said in done.stderr, done.stderr[-500:]


def test_the_device_that_is_not_there_is_an_h200() -> None:
    """Its figures are those that this project computes with."""
    from lumosx_rt.kernels.compile import SHARED_MEMORY_BYTES

    text = (Path(__file__).with_name("device.h")).read_text()
    assert f"shared_most = {SHARED_MEMORY_BYTES[90]}" in text
    assert "141} * 1000 * 1000 * 1000" in text

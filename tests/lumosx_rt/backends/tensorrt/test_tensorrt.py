"""The backend tensorrt on a stand-in for TensorRT and for the GPU: built, gated, compared, loaded.

TensorRT itself has never run here; what its real bindings say is in test_plugin_lifecycle.py and
test_stubs.py.
"""

import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import PLAN, path_problems, read_manifest, record_files
from lumosx_rt.artifact.report import read_report
from lumosx_rt.backends.table import compiler_of
from lumosx_rt.backends.tensorrt import room
from lumosx_rt.backends.tensorrt.run import TensorRtBackend
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.onnx import opaque_nodes as plugin
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.sampling.eager import EagerBackend
from tests.lumosx_rt.backends.tensorrt.fake_tensorrt import Classic, opaque_graph
from tests.lumosx_rt.backends.tensorrt_rtx.test_run import FakeStream, no_gpu, request_of

NAMES = {"QkNormRope", "RelationalAttention", "VideoAttention", "RelationalBias",
         "RelationalCrossAttention"}  # fmt: skip
BUILD = {"backend": "tensorrt"}
TOLD: list[str] = []  # what was asked of streams


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU, whose memory is the CPU's; `gpu(8, 6)` says of which capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    no_gpu(monkeypatch, TOLD)
    monkeypatch.setattr(room, "TensorRtBackend", partial(TensorRtBackend, device="cpu"))

    def capability(*numbers: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: numbers)

    capability(9, 0)
    return capability


@pytest.fixture
def world(gpu, micro_bundle, own_cache, monkeypatch) -> Classic:
    """TensorRT, installed."""
    made = Classic(load_transformer(micro_bundle).eval())
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", made.plugin_module())

    def export(model, path, *, report):
        opaque_graph(path, model.config)
        return {"operators": {"Attention": 2}, "opset": 23}

    monkeypatch.setattr(plugin, "export_plugin_onnx", export)
    return made


@pytest.fixture
def engine(world, micro_bundle, tmp_path):
    return rt.build(micro_bundle, tmp_path / "engine", **BUILD)


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


# -- building -----------------------------------------------------------------------------------


def test_a_checkpoint_becomes_one_plan(world, engine):
    manifest = read_manifest(engine)
    assert (manifest.backend, manifest.precision) == ("tensorrt", "bf16")
    assert set(manifest.files) == {PLAN} and (engine / PLAN).read_bytes() == b"plan"
    assert manifest.device["capability"] == "9.0" and manifest.device["name"] == "NVIDIA Stand-in"
    assert manifest.versions["tensorrt"] == world.__version__ and "triton" in manifest.versions
    assert manifest.layouts == Limits.around((5, 8, 18), max_references=16, max_seeds=4).table()
    assert cache.compiled_here(manifest.files[PLAN].sha256)


def test_plugins_are_declared_before_the_graph_is_read(world, engine):
    assert set(world.registry) == {f"lumosx::{name}" for name in NAMES}
    assert all(parts == {"register", "autotune", "aot_impl"} for parts in world.registry.values())
    strongly_typed, ahead_of_time = 1, 2
    assert world.told == [("network", strongly_typed | ahead_of_time), "parse", "profile", "build"]
    assert world.flags == set()  # no TF32
    limits = Limits.around((5, 8, 18), max_references=16, max_seeds=4)
    fixed = (-1, -1, 16, -1, -1, -1)
    assert list(world.shapes["latents"]) == limits.shapes("latents", fixed)
    assert len(world.shapes) == 12


def test_the_plan_is_compared_with_the_reference(world, engine, micro_bundle, tmp_path):
    parity = read_report(engine)["build"]["parity"]
    assert len(parity) == 4 and all(0 <= c["relative_error"] <= c["gate"] for c in parity)
    text = (engine / "report.md").read_text(encoding="utf-8")
    assert "not run" not in text and "the plan itself" in text and "NVIDIA Stand-in" in text
    assert "| plugin QkNormRope | 7 |" in text and "| cross.video | 2 | BFloat16 |" in text
    with torch.no_grad():
        world.model.head.head.weight.mul_(1.2)
    said = refusal(rt.build, micro_bundle, tmp_path / "wrong", **BUILD)
    assert "differs from the reference" in said and not (tmp_path / "wrong").exists()


def test_weights_are_streamed_on_request(world, micro_bundle, tmp_path):
    rt.build(micro_bundle, tmp_path / "engine", **BUILD, weight_streaming=True, max_seeds=2)
    assert world.flags == {"WEIGHT_STREAMING"}
    assert read_manifest(tmp_path / "engine").layouts["seeds"] == [1, 2]


def test_function_bodies_are_no_substitute_for_plugins(world, micro_bundle, tmp_path, monkeypatch):
    from lumosx_rt.backends.tensorrt import compile as plugin_plans

    monkeypatch.setattr(plugin_plans, "declare_plugins", lambda trt: [])
    said = refusal(rt.build, micro_bundle, tmp_path / "engine", **BUILD)
    assert "attentions" in said or "plugins" in said
    assert not (tmp_path / "engine").exists() and "build" not in world.told


def test_a_plugin_that_the_plan_lost_is_named(world, micro_bundle, tmp_path):
    world.forgets = "node4"
    said = refusal(rt.build, micro_bundle, tmp_path / "engine", **BUILD)
    assert "node4 is no kernel" in said and not (tmp_path / "engine").exists()


def test_what_is_odd_about_kernels_is_told_where_the_plan_is_run(world, micro_bundle, tmp_path):
    world.unfused, lines = True, list[str]()
    rt.build(micro_bundle, tmp_path / "engine", **BUILD, report=lines.append)
    (line,) = [line for line in lines if "worth knowing" in line]
    assert "blocks.0.cross.video is not one fused kernel" in line


# -- loading and running ------------------------------------------------------------------------


def test_a_plan_runs_like_the_reference(world, engine, gpu):
    world.calls.clear()
    backend = rt.load(engine).backend
    assert backend.describe() == {
        "backend": "tensorrt", "device": "NVIDIA Stand-in", "tensorrt": world.__version__,
    }  # fmt: skip
    latents, time, given = request_of(world.model, "2x3x9+1+2.1", "2x3x9+0+4", seeds=3)
    expected = EagerBackend(world.model).bind(given)(latents, time)
    assert torch.equal(backend.bind(given)(latents, time), expected)
    assert world.calls.index("deserialize") < world.calls.index("context")
    assert "got shape" in refusal(backend.bind, request_of(world.model, "6x3x9+1+2")[2])


@pytest.mark.parametrize("capturable", [True, False])
def test_steps_after_the_first_are_one_graph_where_they_can_be(
    world, engine, gpu, monkeypatch, capturable
):
    monkeypatch.setattr(FakeStream, "capturable", capturable)
    backend = rt.load(engine).backend
    latents, _, given = request_of(world.model, "2x3x9+1+2")
    exact = EagerBackend(world.model).bind(given)
    for _ in range(2):
        TOLD.clear()
        denoise = backend.bind(given)
        for time in (900, 500, 100):
            assert torch.equal(denoise(latents, time), exact(latents, time))
        graph = ["wait", "capture", "launch", "launch"]
        assert TOLD == graph if capturable else TOLD in (["wait", "capture"], ["wait"])
    assert backend.captured_by_us is capturable


def test_plugins_are_declared_before_a_plan_is_read(engine, world, monkeypatch):
    fresh = Classic(world.model)
    monkeypatch.setitem(sys.modules, "tensorrt", fresh)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", fresh.plugin_module())
    declared = []
    right = fresh.deserialize
    monkeypatch.setattr(
        fresh, "deserialize", lambda blob: (declared.append(len(fresh.registry)), right(blob))[1]
    )
    rt.load(engine)
    rt.load(engine)
    assert declared == [5, 5]


def test_where_it_does_not_run(world, engine, gpu, monkeypatch):
    assert "'cpu'" in refusal(rt.load, engine, provider="cpu")
    assert "onnxruntime" in refusal(rt.load, engine, provider="tensorrt")
    gpu(8, 0)
    said = refusal(rt.load, engine, trust=True)
    assert "compute capability 9.0" in said and "8.0" in said and "--backend tensorrt" in said
    gpu(9, 0)
    monkeypatch.setattr(world, "__version__", "10.16.1.11")
    said = refusal(rt.load, engine, trust=True)
    assert "11.4.0.106" in said and "10.16.1.11" in said and "tensorrt==11.4.0.106" in said


def test_a_plan_made_elsewhere_is_loaded_only_on_trust(world, engine, monkeypatch, tmp_path):
    monkeypatch.setenv("LUMOSX_CACHE", str(tmp_path / "another"))
    said = refusal(rt.load, engine)
    assert "made elsewhere" in said and "--trust" in said
    rt.load(engine, trust=True)
    (engine / PLAN).write_bytes(b"plam")
    with pytest.raises(LumosXError, match="sha256"):
        rt.load(engine, trust=True)
    (engine / PLAN).unlink()
    replace(read_manifest(engine), files={}).write(engine)
    assert f"no {PLAN}" in refusal(rt.load, engine)
    assert record_files(engine) == {}


def test_only_plans_of_one_name_may_be_listed():
    assert path_problems(PLAN, "tensorrt") == []
    for name in ("transformer/other.plan", "transformer/model-4.plan", "transformer/model.pt2"):
        assert "forbidden" in path_problems(name, "tensorrt")[0]


# -- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"targets": "sm_90"}, ["targets", "this machine", "tensorrt-rtx"]),
        ({"opset": 20}, ["opset", "leave it away"]),
        ({"device": "cuda"}, ["device", "leave it away"]),
        ({"buckets": "4"}, ["buckets", "tensorrt-rtx"]),
        ({"precision": "fp32"}, ["'fp32'", "bf16 or fp16", "--backend torch"]),
        ({"precision": "fp8"}, ["'fp8'", "torch or tensorrt-rtx"]),
        ({"max_seeds": 1}, ["max_seeds", "2 to 64"]),
        ({"max_size": rt.VideoSize(5, 32, 48)}, ["max_size", "checked on"]),
        ({"max_references": 1}, ["max_references", "checked on"]),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_at_once(world, micro_bundle, tmp_path, wrong, said):
    text = refusal(rt.build, micro_bundle, tmp_path / "engine", **BUILD | wrong)
    assert all(part in text for part in said), text
    assert world.told == [] and not list(tmp_path.glob("engine"))


@pytest.mark.parametrize("numbers", [(7, 5), (13, 0)])
def test_a_gpu_without_kernels_is_refused(world, gpu, numbers):
    gpu(*numbers)
    said = refusal(compiler_of, "tensorrt")
    assert "no kernels for sm_" in said and "--backend onnxruntime" in said


def test_without_tensorrt_it_says_what_to_do(monkeypatch):
    class Missing:
        """A package whose libraries are not there."""

        def find_spec(self, name, path=None, target=None):
            if name == "tensorrt":
                raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    said = compiler_said()
    assert "needs the package tensorrt" in said and "--backend torch" in said
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert "libnvinfer.so.11" in compiler_said() and "pip install tensorrt" in compiler_said()


def compiler_said() -> str:
    return refusal(compiler_of, "tensorrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, run, micro_bundle, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", Classic(None))
    said = compiler_said()
    assert "no NVIDIA driver" in said and "tensorrt-rtx" in said and "onnxruntime" in said
    command = ("build", micro_bundle, "-o", tmp_path / "engine", "--backend", "tensorrt")
    shown = run(*command, code=1).stderr
    assert shown.count("error:") == 1 and not (tmp_path / "engine").exists()


def test_doctor_knows_it(run, world, monkeypatch):
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["tensorrt"] == "11.4.0.106, for NVIDIA Stand-in" and facts["problems"] == []
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["tensorrt"].startswith("none; backend: 'tensorrt' needs the package tensorrt")
    assert facts["problems"] == []  # it is one of several backends


def test_the_command_line_knows_it(run):
    text = " ".join(run("build", "--help").stdout.replace("│", "").split())
    assert "tensorrt (a plan for this machine's GPU)" in text

"""The backend tensorrt-rtx: a plan is really built here, judged, listed; and loaded nowhere else
than where it can run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import (
    PLAN,
    check_files,
    path_problems,
    read_manifest,
    record_files,
)
from lumosx_rt.artifact.report import read_report
from lumosx_rt.backends.table import compiler_of
from lumosx_rt.backends.tensorrt_rtx.compile import TARGETS
from lumosx_rt.calibration.formats import FORMATS
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.tensorrt.plan import attention_sites
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.runtime.describe import describe

trt = pytest.importorskip("tensorrt_rtx")
HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


class Loaded(BaseException):
    """TensorRT was about to be given a plan."""


@pytest.fixture(autouse=True)
def unloadable(monkeypatch):
    def runtime(log):
        raise Loaded

    monkeypatch.setattr(trt, "Runtime", runtime)


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU; `gpu(8, 6)` says of which compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def capability(*numbers: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: numbers)

    capability(8, 9)
    return capability


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)


# -- what is built ------------------------------------------------------------------------------


def test_a_checkpoint_becomes_one_plan(planned):
    manifest = read_manifest(planned.folder)
    check_files(planned.folder, manifest)
    assert (manifest.backend, manifest.precision) == ("tensorrt-rtx", "bf16")
    assert set(manifest.files) == {PLAN} and planned.printed == ""
    assert [p.name for p in (planned.folder / "transformer").iterdir()] == ["model.plan"]
    assert manifest.device == {"targets": "sm_89,sm_120"}
    assert manifest.versions["tensorrt_rtx"] == trt.__version__
    limits = Limits.around((5, 8, 18), max_references=16, max_seeds=4)  # of the defaults
    assert manifest.layouts == limits.table()
    assert cache.compiled_here(manifest.files[PLAN].sha256)
    assert "TensorRT: building engine" in planned.lines


def test_all_attention_is_fused_and_reads_bf16(planned):
    layers = read_report(planned.folder)["build"]["layers"]
    assert layers["attention"] == {
        "self.video": {"BFloat16": 2},
        "self.groups": {"BFloat16": 1},
        "cross.video": {"BFloat16": 2},
        "cross.references": {"BFloat16": 1},
    }
    fused = sum(sum(types.values()) for types in layers["attention"].values())
    assert fused == len(attention_sites(2)) == 6
    assert sum(layers["kernels"].values()) > 50 and layers["scratch_bytes"] > 1 << 20


def test_the_report_says_what_was_compared_and_that_the_plan_was_not_run(planned):
    build = read_report(planned.folder)["build"]
    assert all(
        0 < case["relative_error"] < FORMATS["fp32"].forward_gate for case in build["parity"]
    )
    assert build["operators"]["Attention"] == 6 and build["opset"] == 23
    text = (planned.folder / "report.md").read_text(encoding="utf-8")
    assert "Plan not run: no GPU" in text and "| self.video | 2 | BFloat16 |" in text


def test_inspect_shows_the_layer_table(planned, run):
    facts = describe(planned.folder, rt.VideoSize(5, 32, 48))
    assert facts["layers"] == read_report(planned.folder)["build"]["layers"]
    assert facts["device"] == {"targets": "sm_89,sm_120"}
    shown = run("inspect", planned.folder).stdout
    assert "self.groups:" in shown and "BFloat16: 1" in shown and "targets: sm_89,sm_120" in shown
    told = json.loads(run("inspect", planned.folder, "--json").stdout)
    assert told["layers"] == facts["layers"]


def test_a_plan_is_up_to_date_only_where_it_was_made(
    planned, micro_bundle, copied, own_cache, exporter
):
    folder = copied(planned.folder)
    said = refusal(rt.build, micro_bundle, folder, backend="tensorrt-rtx")
    assert "made elsewhere" in said and "--force" in said
    cache.note_compiled(read_manifest(folder).files[PLAN].sha256)
    lines: list[str] = []
    rt.build(micro_bundle, folder, backend="tensorrt-rtx", report=lines.append)
    assert "up to date" in lines[-1] and exporter.started == 0
    for other in ({"targets": "sm_86"}, {"max_seeds": 2}, {"weight_streaming": True}):
        said = refusal(rt.build, micro_bundle, folder, backend="tensorrt-rtx", **other)
        assert "other inputs" in said
    size = rt.VideoSize(5, 32, 48)
    said = refusal(rt.build, micro_bundle, folder, backend="tensorrt-rtx", max_size=size)
    assert "other inputs" in said


def test_an_interrupted_build_stops_tensorrt_and_leaves_nothing(
    micro_bundle, exporter, plan_graph, tmp_path
):
    exporter.graph = plan_graph.parent

    def report(line: str) -> None:
        if line == "TensorRT: building engine from subgraph":
            raise KeyboardInterrupt

    options = {"backend": "tensorrt-rtx", "targets": "sm_89", "report": report}
    with pytest.raises(KeyboardInterrupt):
        rt.build(micro_bundle, tmp_path / "engine", **options)
    assert not (tmp_path / "engine").exists()
    assert not list(tmp_path.rglob("*.plan")) and not list(tmp_path.rglob("*.onnx"))


# -- what may be listed and loaded --------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_only_this_backend_may_have_a_plan(backend):
    assert "forbidden" in path_problems(PLAN, backend)[0]
    assert path_problems(PLAN, "tensorrt-rtx") == []
    for name in ("other.plan", "model-0.plan", "model-04.plan", "model-4.plan.plan", "model-.plan"):
        assert "forbidden" in path_problems(f"transformer/{name}", "tensorrt-rtx")[0]
    assert path_problems("transformer/model-4.plan", "tensorrt-rtx") == []
    assert "forbidden" in path_problems("transformer/model-4.plan", backend)[0]
    assert "forbidden" in path_problems("transformer/model.pt2", "tensorrt-rtx")[0]


@HERE
@pytest.mark.parametrize("trust", [False, True])
def test_without_a_gpu_it_says_so_in_one_sentence(planned, trust):
    said = refusal(rt.load, planned.folder, trust=trust)
    assert "no NVIDIA driver" in said and "sm_89,sm_120" in said and "--backend onnxruntime" in said
    assert "\n" not in said


@HERE
@pytest.mark.parametrize("command", ["verify", "bench", "generate"])
def test_commands_that_run_it_say_so_too(planned, micro_bundle, scenes, run, tmp_path, command):
    words = {"verify": [], "bench": ["-o", tmp_path / "b"], "generate": [scenes / "a"]}[command]
    said = run(command, planned.folder, *words, "--components", micro_bundle, code=1).stderr
    assert said.count("error:") == 1 and "no NVIDIA driver" in " ".join(said.split())


def test_another_version_is_refused_with_both_remedies(planned, copied, gpu):
    folder = copied(planned.folder)
    manifest = read_manifest(folder)
    replace(manifest, versions=manifest.versions | {"tensorrt_rtx": "1.6.0.3"}).write(folder)
    said = refusal(rt.load, folder, trust=True)
    assert "1.6.0.3" in said and trt.__version__ in said and "tensorrt-rtx==1.6.0.3" in said
    assert f"-o {folder} --backend tensorrt-rtx --targets sm_89,sm_120 --force" in said


def test_without_the_package_it_says_what_to_install(planned, monkeypatch, micro_bundle, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    for said in (
        refusal(rt.load, planned.folder, trust=True),
        refusal(rt.build, micro_bundle, tmp_path / "engine", backend="tensorrt-rtx"),
    ):
        assert "pip install lumosx-rt[tensorrt]" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("numbers, name", [((8, 6), "sm_86"), ((9, 0), "sm_90")])
def test_another_gpu_is_refused(planned, gpu, numbers, name):
    gpu(*numbers)
    said = refusal(rt.load, planned.folder, trust=True)
    assert "sm_89,sm_120" in said and f"the GPU here is {name}" in said and "torch" in said


def test_a_plan_made_elsewhere_is_loaded_only_on_trust(planned, gpu, own_cache):
    said = refusal(rt.load, planned.folder)
    assert all(word in said for word in ("made elsewhere", "your rights", "--trust", "trust=True"))
    with pytest.raises(Loaded):
        rt.load(planned.folder, trust=True)


def test_a_plan_made_here_is_loaded(planned, gpu):
    for provider in ("auto", "cuda"):
        with pytest.raises(Loaded):
            rt.load(planned.folder, provider=provider)
    assert "'cpu'" in refusal(rt.load, planned.folder, provider="cpu")


def test_a_damaged_plan_is_refused_by_its_hash(planned, copied, gpu):
    folder = copied(planned.folder)
    content = bytearray((folder / PLAN).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / PLAN).write_bytes(content)
    assert "sha256" in refusal(rt.load, folder, trust=True)
    replace(read_manifest(folder), files=record_files(folder)).write(folder)
    assert "made elsewhere" in refusal(rt.load, folder)
    (folder / PLAN).unlink()
    replace(read_manifest(folder), files={}).write(folder)
    assert f"no {PLAN}" in refusal(rt.load, folder)


# -- requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"targets": "sm_90"}, ["'sm_90'", "datacenter", "--backend torch"]),
        ({"targets": "sm_89,sm_100"}, ["'sm_100'", "--backend torch"]),
        ({"targets": "sm_70"}, ["'sm_70'", *TARGETS]),
        ({"targets": "ada"}, ["'ada'", "sm_89"]),
        ({"targets": ""}, ["targets", "sm_89"]),
        ({"targets": []}, ["targets", "sm_89"]),
        ({"precision": "fp32"}, ["'fp32'", "bf16, fp16 or fp8", "--backend torch"]),
        ({"precision": "fp8"}, ["'fp8'", "--calibration"]),
        ({"precision": "fp8", "targets": "sm_80"}, ["'fp8'", "sm_80 cannot"]),
        ({"precision": "int8"}, ["'int8'", "bf16, fp16 or fp8"]),
        ({"buckets": "4,16"}, ["buckets", "4,16", "--precision fp8"]),
        ({"precision": "fp8", "buckets": "16,4"}, ["buckets", "16,4", "like 4,16"]),
        ({"precision": "fp8", "buckets": "4,many"}, ["buckets", "4,many"]),
        ({"precision": "fp8", "buckets": "0,4"}, ["buckets", "1 to 64"]),
        ({"precision": "fp8", "buckets": [4, 65]}, ["buckets", "65"]),
        ({"backend": "onnxruntime", "buckets": "4"}, ["buckets", "--backend tensorrt-rtx"]),
        ({"targets": "sm_75"}, ["'sm_75'", "float32", "--backend torch"]),
        ({"opset": 20}, ["opset", "20", "--targets"]),
        ({"device": "cuda"}, ["device", "'cuda'", "--targets"]),
        ({"max_seeds": 0}, ["max_seeds", "0", "1 to 64"]),
        ({"max_seeds": 65}, ["max_seeds", "65"]),
        ({"backend": "onnxruntime", "targets": "sm_89"}, ["targets", "--backend tensorrt-rtx"]),
        ({"backend": "torch", "weight_streaming": True}, ["weight_streaming", "tensorrt-rtx"]),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_at_once(micro_bundle, tmp_path, monkeypatch, wrong, said):
    from lumosx_rt.artifact import source

    def load(self):
        raise AssertionError("weights were read")

    monkeypatch.setattr(source.CheckpointSource, "load", load)
    options = {"backend": "tensorrt-rtx"} | wrong
    text = refusal(rt.build, micro_bundle, tmp_path / "engine", **options)
    assert all(part in text for part in said), text
    assert not list(tmp_path.iterdir())


def test_what_is_asked_for_is_what_the_compiler_makes():
    plain = compiler_of("tensorrt-rtx")
    assert (plain.precision, plain.device["targets"]) == ("bf16", "sm_89,sm_120")
    asked = compiler_of(
        "tensorrt-rtx",
        {
            "precision": "fp16",
            "targets": " sm_80, sm_86,sm_80",
            "max_seeds": 2,
            "max_size": rt.VideoSize(5, 32, 48),
        },
    )
    assert asked.device["targets"] == "sm_80,sm_86" and asked.precision == "fp16"
    released = {"frames": 81, "height": 480, "width": 832}
    assert asked.limits(released, 3) == Limits.around((2, 2, 3), max_references=3, max_seeds=2)
    assert plain.limits(released, 16).frames.most == 21


def test_the_command_line_knows_it(run, micro_bundle, tmp_path):
    text = " ".join(run("build", "--help").stdout.split())
    for word in ("tensorrt-rtx", "--targets", "--max-seeds", "--max-size", "--buckets"):
        assert word in text
    out = tmp_path / "engine"
    command = ("build", micro_bundle, "-o", out, "--backend", "tensorrt-rtx")
    assert "sm_90" in run(*command, "--targets", "sm_90", code=2).stderr
    assert "81x480x832" in run(*command, "--max-size", "big", code=2).stderr
    assert "height" in run(*command, "--max-size", "81x481x832", code=2).stderr
    assert not out.exists()


def test_its_help_imports_neither_torch_nor_tensorrt():
    import subprocess

    code = (
        "import runpy, sys\nsys.argv = ['lumosx-rt', 'build', '--help']\ntry:\n"
        "    runpy.run_module('lumosx_rt', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'tensorrt_rtx', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(rt.__file__).parents[1],
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr

"""Compiled code: where it may run, where it can, and builds of it that stop."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import PACKAGE, read_manifest, record_files
from lumosx_rt.backends.torch import checks
from lumosx_rt.backends.torch.compile import TorchCompiler
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.errors import LumosXError


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)


# -- trust --------------------------------------------------------------------------------------


class Loaded(BaseException):
    """Code was about to run."""


@pytest.fixture
def unloadable(monkeypatch):
    """Loading a package is an error of its own here: nothing may get that far."""

    def load(*args, **options):
        raise Loaded

    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", load)


def test_code_compiled_elsewhere_runs_only_on_trust(compiled, own_cache, run, scenes):
    said = refusal(rt.load, compiled.folder)
    for part in ("compiled code", "made elsewhere", "your rights", "--backend torch", "--trust"):
        assert part in said
    assert "trust=True" in said and "\n" not in said
    assert "--trust" in run("verify", compiled.folder, scenes / "a", code=1).stderr
    assert rt.load(compiled.folder, trust=True).backend.describe()["backend"] == "torch"
    assert not list(own_cache.rglob("compiled/*"))  # trusted once is not made here
    assert "made elsewhere" in refusal(rt.load, compiled.folder)


def test_without_trust_nothing_is_loaded(compiled, own_cache, unloadable):
    refusal(rt.load, compiled.folder)
    with pytest.raises(Loaded):
        rt.load(compiled.folder, trust=True)


@pytest.mark.parametrize("relisted", [False, True])
def test_a_changed_package_is_refused_whatever_the_manifest_says(
    compiled, copied, unloadable, relisted
):
    folder = copied(compiled.folder)
    content = bytearray((folder / PACKAGE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / PACKAGE).write_bytes(content)
    if relisted:
        replace(read_manifest(folder), files=record_files(folder)).write(folder)
        assert "made elsewhere" in refusal(rt.load, folder)
    else:
        assert "sha256" in refusal(rt.load, folder)
        assert "sha256" in refusal(rt.load, folder, trust=True)
    assert "made elsewhere" in refusal(rt.load, folder, check_hashes=False)


MEMBERS = [
    "/etc/evil.so", "../evil.so", "model/data/aotinductor/model/../../../../../evil.so", "a\\..\\b",
    "C:/evil.so", "model/./x.so", "model//x.so", "..",
]  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_that_leaves_the_folder_is_refused_even_on_trust(
    compiled, copied, unloadable, name
):
    folder = copied(compiled.folder)
    with zipfile.ZipFile(folder / PACKAGE, "a") as archive:
        archive.writestr(name, b"evil")
    replace(read_manifest(folder), files=record_files(folder)).write(folder)
    said = refusal(rt.load, folder, trust=True)
    assert repr(name) in said and "outside its folder" in said


def test_a_link_among_the_members_is_refused(compiled, copied, unloadable):
    folder = copied(compiled.folder)
    link = zipfile.ZipInfo("model/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / PACKAGE, "a") as archive:
        archive.writestr(link, "/etc")
    replace(read_manifest(folder), files=record_files(folder)).write(folder)
    assert "'model/link'" in refusal(rt.load, folder, trust=True)


@pytest.mark.parametrize("damage", ["no archive", "an empty archive", "no package"])
def test_what_is_no_package_is_refused_in_one_line(compiled, copied, damage):
    folder = copied(compiled.folder)
    manifest = read_manifest(folder)
    if damage == "no package":
        (folder / PACKAGE).unlink()
    elif damage == "no archive":
        (folder / PACKAGE).write_bytes(b"x" * 1000)
    else:
        zipfile.ZipFile(folder / PACKAGE, "w").close()
    replace(manifest, files=record_files(folder)).write(folder)
    said = refusal(rt.load, folder, trust=True)
    assert "model.pt2" in said and "\n" not in said


# -- where it runs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device, versions, said",
    [
        ({"name": "cpu", "machine": "vax", "instructions": "AVX512"}, {}, "vax"),
        ({"instructions": "AVX9000"}, {}, "AVX9000"),
        ({"name": "NVIDIA H100", "machine": "x86_64", "capability": "9.0"}, {}, "NVIDIA H100"),
        ({}, {"torch": "2.9.1"}, "torch 2.9.1"),
        ({}, {"torch": "3.13.0"}, "torch 3.13.0"),
    ],
    ids=["machine", "instructions", "GPU", "older torch", "newer torch"],
)
def test_another_machine_is_refused_with_what_mends_it(
    compiled, copied, unloadable, device, versions, said
):
    if "capability" in device and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = copied(compiled.folder)
    manifest = read_manifest(folder)
    device = device if "name" in device else manifest.device | device
    replace(manifest, device=device, versions=manifest.versions | versions).write(folder)
    for trust in (False, True):
        text = refusal(rt.load, folder, trust=trust)
        assert said in text and f"-o {folder} --backend torch" in text and "\n" not in text


@pytest.mark.parametrize(
    ("cudnn", "accepted"), [("91900", True), ("92000", True), ("91800", False), ("0", False)]
)
def test_an_older_cudnn_than_it_was_compiled_with_is_refused(
    compiled, copied, monkeypatch, cudnn, accepted
):
    """Its attention is called by name, whatever is installed where the package runs."""
    gpu = {"name": "NVIDIA H200", "machine": "x86_64", "capability": "9.0"}
    folder = copied(compiled.folder)
    replace(read_manifest(folder), device=gpu | {"cudnn": "91900"}).write(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(checks, "device_facts", lambda device: gpu | {"cudnn": cudnn})
    manifest = read_manifest(folder)
    if accepted:
        return checks.check_package(folder, manifest, trust=False)
    said = refusal(checks.check_package, folder, manifest, trust=True)
    assert "compiled with cuDNN 91900" in said and "build it again" in said


def test_a_patch_version_of_torch_does_not_matter(compiled, copied):
    folder = copied(compiled.folder)
    manifest = read_manifest(folder)
    major, minor, _ = manifest.versions["torch"].split(".", 2)
    versions = manifest.versions | {"torch": f"{major}.{minor}.99"}
    replace(manifest, versions=versions).write(folder)
    assert rt.load(folder).backend.describe()["backend"] == "torch"


def test_a_place_that_it_was_not_compiled_for_is_refused(compiled):
    text = refusal(rt.load, compiled.folder, provider="cuda")
    assert "'cuda'" in text and "--device cuda" in text
    assert rt.load(compiled.folder, provider="cpu").backend.describe()["device"].startswith("cpu")


# -- requests -----------------------------------------------------------------------------------


@pytest.fixture
def idle(monkeypatch):
    """A build that reads weights has gone too far."""
    from lumosx_rt.artifact import source

    def load(self):
        raise AssertionError("weights were read")

    monkeypatch.setattr(source.CheckpointSource, "load", load)


@pytest.mark.parametrize(
    "wrong, accepted",
    [
        ({"backend": "torch", "precision": "fp16"}, ["'fp16'", "fp32, bf16 or fp8"]),
        ({"backend": "torch", "opset": 23}, ["opset", "23", "onnxruntime"]),
        ({"backend": "onnxruntime", "precision": "bf16"}, ["'bf16'", "fp32, fp16 or fp8"]),
        ({"backend": "auto", "precision": "bf16"}, ["'bf16'", "--backend torch"]),
        ({"backend": "onnxruntime", "device": "cpu"}, ["'cpu'", "--provider"]),
        ({"backend": "torch", "device": "tpu"}, ["'tpu'", "auto, cpu, cuda"]),
        ({"backend": "torchscript"}, ["'torchscript'", "onnxruntime, torch"]),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_at_once(
    micro_bundle, idle, tmp_path, wrong, accepted
):
    text = refusal(rt.build, micro_bundle, tmp_path / "engine", **wrong)
    assert all(part in text for part in accepted), text
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(micro_bundle, idle, tmp_path):
    text = refusal(rt.build, micro_bundle, tmp_path / "engine", backend="torch", device="cuda")
    assert "no GPU" in text and "--device cpu" in text


def test_a_gpu_without_kernels_is_refused_before_anything_is_compiled(
    micro_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old")
    model, path = load_transformer(micro_bundle), tmp_path / "model.pt2"
    limits = Limits.any_size(16)
    text = refusal(TorchCompiler("bf16", "cuda").compile, model, path, limits, lambda line: None)
    assert "kernels for this GPU" in text and "--device cpu" in text and not path.exists()


@pytest.mark.parametrize("name", [None, "no-such-compiler"])
def test_without_a_compiler_nothing_is_begun(micro_bundle, idle, tmp_path, monkeypatch, name):
    if name is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CXX", name)
    text = refusal(rt.build, micro_bundle, tmp_path / "engine", backend="torch")
    assert "g++" in text and "CXX" in text and "--backend onnxruntime" in text
    assert not list(tmp_path.iterdir())
    from lumosx_rt.runtime.doctor import examine

    assert "g++" in examine()["cpp_compiler"]


def test_the_command_line_knows_it(run, compiled, monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    monkeypatch.setenv("COLUMNS", "300")
    text = run("build", "--help").stdout
    assert "--backend torch" in text and "--device" in text and "bf16" in text
    for command in ("generate", "verify", "bench"):
        assert "--trust" in run(command, "--help").stdout
    facts = json.loads(run("inspect", compiled.folder, "--json").stdout)
    assert facts["backend"] == "torch" and facts["operators"] == {}
    assert "cpp_compiler" in json.loads(run("doctor", "--json").stdout)


# -- builds that stop ---------------------------------------------------------------------------


class Killed(BaseException):
    """What stops a build here, like Ctrl-C."""


@pytest.fixture
def compiler(compiled, monkeypatch):
    """The compiler's double: copies the package that was compiled once. Counts its calls."""
    from lumosx_rt.export import aoti as package

    calls: list[Path] = []

    def copy(model, path, *, ops, report):
        calls.append(path)
        path.parent.mkdir(parents=True)
        report("tracing the model")
        shutil.copy(compiled.folder / PACKAGE, path)
        return {"compile_seconds": 1.0}

    monkeypatch.setattr(package, "compile_package", copy)
    return calls


def killed_at(word: str):
    def report(line: str) -> None:
        if line.startswith(word):
            raise Killed

    return report


@pytest.mark.parametrize("word, again", [("tracing", True), ("checking", False)])
def test_a_killed_build_goes_on(micro_bundle, compiler, tmp_path, word, again):
    out = tmp_path / "engine"
    with pytest.raises(Killed):
        rt.build(micro_bundle, out, backend="torch", report=killed_at(word))
    assert not out.exists() and len(compiler) == 1
    lines: list[str] = []
    rt.build(micro_bundle, out, backend="torch", report=lines.append)
    assert len(compiler) == 1 + again
    assert ("compiled transformer: found from an earlier build" in lines) is not again
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]
    assert rt.load(out).backend.describe()["backend"] == "torch"


def test_a_package_that_was_put_there_is_not_found(micro_bundle, compiler, tmp_path, monkeypatch):
    """A stage of a killed build, or a finished engine, that this user's cache does not know."""
    out = tmp_path / "engine"
    with pytest.raises(Killed):
        rt.build(micro_bundle, out, backend="torch", report=killed_at("checking"))
    monkeypatch.setenv("LUMOSX_CACHE", str(tmp_path / "other"))
    rt.build(micro_bundle, out, backend="torch")
    assert len(compiler) == 2
    monkeypatch.setenv("LUMOSX_CACHE", str(tmp_path / "another"))
    assert "made elsewhere" in refusal(rt.build, micro_bundle, out, backend="torch")
    rt.build(micro_bundle, out, backend="torch", force=True)
    assert len(compiler) == 3 and rt.load(out)

"""Where onnxruntime is asked to run, and with what; a stand-in plays the GPUs.

The stand-in computes with the real onnxruntime on the CPU, out of memory that it copied: what is
not copied to the "device" and back is missed.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import GRAPH, FileRecord, read_manifest, record_files
from lumosx_rt.backends.common.devices import PROVIDERS
from lumosx_rt.backends.onnxruntime import providers
from lumosx_rt.backends.onnxruntime.providers import NAMES, serving_of
from lumosx_rt.backends.table import load_backend
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import INPUTS, OUTPUT, check_shapes
from tests.lumosx_rt.backends.tensorrt_rtx.test_run import request_of

CPU, CUDA, TENSORRT, RTX = NAMES.values()
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
GPUS = ("cuda", "tensorrt", "tensorrt-rtx")
# as the libraries of onnxruntime-gpu 1.31.1 and onnxruntime-ep-nv-tensorrt-rtx 0.5.0 name them;
# the latter refuses any other
KNOWN = {
    "cuda": {"device_id", "arena_extend_strategy", "use_tf32", "gpu_mem_limit"},
    "tensorrt": {
        "device_id", "trt_fp16_enable", "trt_bf16_enable", "trt_cuda_graph_enable",
        "trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable",
        "trt_timing_cache_path", "trt_load_user_initializer", "trt_profile_min_shapes",
        "trt_profile_opt_shapes", "trt_profile_max_shapes",
    },
    "tensorrt-rtx": {
        "enable_cuda_graph", "nv_runtime_cache_path", "nv_use_external_data_initializer",
        "nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes",
    },
}  # fmt: skip
AVAILABLE = {"cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU], "tensorrt-rtx": [RTX, CPU]}


class Value:
    """Memory of a device: a copy, unless it is the CPU's own."""

    def __init__(self, array: np.ndarray, device: str) -> None:
        self.device = device
        self.array = array if device == "cpu" else array.copy()

    def update_inplace(self, array: np.ndarray) -> None:
        self.array[...] = array

    def numpy(self) -> np.ndarray:
        return self.array.copy()


class World:
    """A stand-in for the module onnxruntime: what it was asked, and how it is to fail."""

    __version__ = "1.31.1"

    def __init__(self, *available: str, devices: tuple[str, ...] = ()) -> None:
        self.available, self.devices = [*available], [*devices]
        self.registered: list[str] = []
        self.config: dict[str, str] = {}
        self.chosen: list[tuple[str, dict[str, str]]] = []
        self.values: list[Value] = []
        self.fails = self.unregistrable = ""
        self.falls_back = False
        self.left_to_the_cpu = ["Shape", "Gather", "Concat"]
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self.value)

    def get_available_providers(self):
        return self.available

    def get_ep_devices(self):
        return [SimpleNamespace(ep_name=CPU)] + [
            SimpleNamespace(ep_name=name, number=i)
            for name in self.registered
            for i in range(self.devices.count(name))
        ]

    def register_execution_provider_library(self, name, path):
        assert path == "/the/library.so" and name not in self.registered
        if self.unregistrable:
            raise RuntimeError(self.unregistrable)
        self.registered.append(name)

    def SessionOptions(self):
        return SimpleNamespace(
            add_session_config_entry=self.config.__setitem__,
            add_provider_for_devices=lambda devices, options: self.chosen.append(
                (devices[0].ep_name, options)
            ),
        )

    def InferenceSession(self, graph, options, providers=(), enable_fallback=1):
        assert not enable_fallback, "onnxruntime would fall back by itself"
        self.chosen += providers
        if self.fails:
            raise RuntimeError(self.fails)
        self.options = options
        self.real = onnxruntime.InferenceSession(graph, providers=[CPU])
        asked = [name for name, _ in self.chosen]
        return SimpleNamespace(
            get_providers=lambda: [CPU] if self.falls_back else [*asked, CPU],
            get_provider_graph_assignment_info=lambda: [
                placed(asked[0], ["MatMul", "Attention"]),
                *(placed(CPU, [op]) for op in self.left_to_the_cpu),
            ],
            io_binding=lambda: Binding(),
            run_with_iobinding=self.run,
        )

    def value(self, array, device, number):
        assert number == 0
        self.values.append(Value(array, device))
        return self.values[-1]

    def run(self, binding):
        feed = {name: binding.inputs[name].array for name in INPUTS}
        binding.outputs[OUTPUT].array[...] = self.real.run([OUTPUT], feed)[0]


def placed(provider: str, operators: list[str]) -> SimpleNamespace:
    """A part of a graph, as onnxruntime tells where it runs."""
    nodes = [SimpleNamespace(op_type=operator) for operator in operators]
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)


class Binding:
    def __init__(self) -> None:
        self.inputs, self.outputs = {}, {}
        self.bind_ortvalue_input = self.inputs.__setitem__
        self.bind_ortvalue_output = self.outputs.__setitem__


@pytest.fixture
def world(monkeypatch, own_cache):
    """`world(provider)`: onnxruntime as if it had this one."""

    def enter(provider: str, *, plugin: bool = False, devices: int = 1) -> World:
        here = [CPU] if plugin or provider == "cpu" else AVAILABLE[provider]
        made = World(*here, devices=(RTX,) * devices)
        monkeypatch.setitem(sys.modules, "onnxruntime", made)
        library = SimpleNamespace(get_library_path=lambda: "/the/library.so")
        monkeypatch.setitem(sys.modules, PLUGIN, library if plugin else None)
        return made

    return enter


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


# -- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "provider, plugin", [*((p, False) for p in GPUS), ("tensorrt-rtx", True)], ids=str
)
def test_what_a_provider_is_asked_for(world, micro, own_cache, provider, plugin):
    here = world(provider, plugin=plugin)
    engine = rt.load(micro.folder, provider=provider)
    ((name, options),) = here.chosen
    assert name == NAMES[provider] and engine.backend.describe()["device"] == provider
    assert set(options) <= KNOWN[provider]
    assert all(isinstance(value, str) for value in options.values())
    assert here.registered == ([RTX] if plugin else [])
    assert here.options.enable_mem_pattern is False
    whole = here.config.get("session.disable_cpu_ep_fallback", "0") == "1"
    assert whole == (provider != "cuda")
    if whole:
        sizes = [value for key in ("min", "opt", "max") for name, value in options.items()
                 if name.endswith(f"_profile_{key}_shapes")]  # fmt: skip
        assert sizes == [*serving_of(engine.manifest).profiles]
    assert not {"1", "True"} & {options.get(f"trt_{p}_enable") for p in ("fp16", "bf16")}
    for graph in ("enable_cuda_graph", "trt_cuda_graph_enable"):
        assert options.get(graph, "0") == "0"
    if provider == "cuda":
        assert options == {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}


@pytest.mark.parametrize("left", [["Attention", "Shape", "Attention"], ["MatMul"]])
def test_a_node_that_computes_never_runs_on_the_cpu_unsaid(world, micro, left):
    here = world("cuda")
    here.left_to_the_cpu = left
    said = refusal(rt.load, micro.folder, provider="cuda")
    assert f"{left[0]} x{left.count(left[0])}" in said and "Shape" not in said
    assert here.config["session.record_ep_graph_assignment_info"] == "1"
    assert "--opset 20" in said and "--provider cpu" in said


def test_onnxruntime_tells_where_nodes_run(micro):
    """The real one: its CPU has every node, sizes and all."""
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(micro.folder / GRAPH, settings, providers=[CPU])
    with pytest.raises(LumosXError, match="MatMul x"):
        providers._check_placement(Path("model.onnx"), session)


def test_the_package_is_registered_once(world, micro):
    here = world("tensorrt-rtx", plugin=True, devices=2)
    for _ in range(2):
        rt.load(micro.folder, provider="tensorrt-rtx")
    assert here.registered == [RTX] and [name for name, _ in here.chosen] == [RTX] * 2


@pytest.mark.parametrize(
    "available, chosen", [([CPU], CPU), ([CUDA, CPU], CUDA), ([TENSORRT, CUDA, CPU], CUDA),
                          ([TENSORRT, RTX, CPU], CPU)], ids=str
)  # fmt: skip
def test_auto_is_cuda_or_the_cpu(world, micro, available, chosen):
    here = world("cpu")
    here.available = available
    rt.load(micro.folder)
    assert [name for name, _ in here.chosen] == [chosen]


# -- sizes --------------------------------------------------------------------------------------


def parsed(shapes: str) -> dict[str, tuple[int, ...]]:
    pairs = (one.split(":") for one in shapes.split(","))
    return {name: tuple(map(int, sizes.split("x"))) for name, sizes in pairs}


def test_profiles_are_of_the_graph_and_hold_the_engines_own_requests(micro, micro_bundle):
    manifest = read_manifest(micro.folder)
    serving = serving_of(manifest)
    least, usual, most = map(parsed, serving.profiles)
    graph = onnx.load(micro.folder / GRAPH, load_external_data=False).graph
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        shapes = least[value.name], usual[value.name], most[value.name]
        assert {len(dims)} == {*map(len, shapes)}
        for dim, sizes in zip(dims, zip(*shapes, strict=True), strict=True):
            assert sizes[0] <= sizes[1] <= sizes[2]
            assert set(sizes) == {dim.dim_value} if dim.dim_value else sizes[0] < sizes[2]
    assert {*least} == {*usual} == {*most} == set(INPUTS) == {v.name for v in graph.input}
    for shapes in (least, usual, most):
        check_shapes(shapes, serving.limits.table())
    model = load_transformer(micro_bundle)
    for key, seeds in (("5x8x18+0+-", 1), ("5x8x18+1+2.2", 1), ("5x18x8+2+3", 4)):
        _, _, given = request_of(model, key, key, seeds=seeds)
        shapes = {"latents": given.shape, "template": given.tensors["template"].shape}
        shapes |= {name: x.shape for name, x in given.tensors.items()}
        for name, shape in shapes.items():
            ends = zip(least[name], shape, most[name], strict=True)
            assert all(low <= size <= high for low, size, high in ends), name
    assert usual["latents"] == (2, 1, 16, 5, 16, 36)  # both guidance branches of the own size


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_what_was_not_compiled_for_never_reaches_it(world, micro, micro_bundle, provider):
    here = world(provider)
    backend = rt.load(micro.folder, provider=provider).backend
    model = load_transformer(micro_bundle)
    said = refusal(backend.bind, request_of(model, "6x8x18+1+2")[2])
    assert "got shape" in said and f"--provider {provider}" in said and "cpu or cuda" in said
    assert not here.values
    here = world("cuda")
    rt.load(micro.folder, provider="cuda").backend.bind(request_of(model, "6x8x18+1+2")[2])
    assert here.values


# -- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["cpu", *GPUS])
def test_every_input_lies_on_the_device(world, micro, micro_bundle, provider):
    here = world(provider)
    backend = rt.load(micro.folder, provider=provider).backend
    model = load_transformer(micro_bundle).eval()
    latents, time, given = request_of(model, "2x3x9+1+2.1", "2x3x9+0+4", seeds=2)
    denoise, expected = backend.bind(given), EagerBackend(model).bind(given)
    assert {value.device for value in here.values} == {"cpu" if provider == "cpu" else "cuda"}
    assert len(here.values) == len(INPUTS) + 1
    for moment, x in ((time, latents), (1000 - time, -latents)):
        found, right = denoise(x, moment), expected(x, moment)
        assert (found - right).norm() < 1e-5 * right.norm()
    other = denoise(latents, time).clone()
    assert not torch.equal(other, denoise(latents, 1000 - time))


# -- caches -------------------------------------------------------------------------------------


def test_what_is_compiled_lies_in_the_users_cache(world, micro, own_cache):
    before = record_files(micro.folder)
    named = {}
    for provider in ("tensorrt", "tensorrt-rtx"):
        here = world(provider)
        rt.load(micro.folder, provider=provider)
        ((_, options),) = here.chosen
        named |= {key: value for key, value in options.items() if key.endswith("_path")}
    assert set(named) == {"trt_engine_cache_path", "trt_timing_cache_path", "nv_runtime_cache_path"}
    folders = {str(path) for path in own_cache.rglob("*") if path.is_dir()}
    assert set(named.values()) <= folders
    assert options["nv_use_external_data_initializer"] == "1"
    assert record_files(micro.folder) == before


def test_other_weights_are_compiled_into_another_folder(micro, own_cache):
    manifest = read_manifest(micro.folder)
    data = f"{GRAPH}.data"
    files = manifest.files | {data: FileRecord("0" * 64, manifest.files[data].bytes)}
    one, same, other = map(serving_of, (manifest, manifest, replace(manifest, files=files)))
    assert one == same and one.engines != other.engines and one.timings == other.timings


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_a_cache_that_cannot_be_had_is_replaced_for_the_process(world, micro, own_cache, provider):
    own_cache.write_text("a file")
    here = world(provider)
    rt.load(micro.folder, provider=provider)
    ((_, options),) = here.chosen
    folders = [Path(value) for key, value in options.items() if key.endswith("_path")]
    assert folders and all(folder.is_dir() for folder in folders)
    assert not any(folder.is_relative_to(own_cache) for folder in folders)


# -- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("provider", GPUS)
def test_a_provider_that_is_not_installed(world, micro, provider):
    here = world("cpu")
    said = refusal(rt.load, micro.folder, provider=provider)
    assert NAMES[provider] in said and "not installed" in said and "--provider cpu" in said
    assert "pip install onnxruntime" in said and not here.chosen


@pytest.mark.parametrize("provider", GPUS)
def test_a_provider_that_does_not_load(world, micro, provider):
    here = world(provider)
    here.falls_back = True
    said = refusal(rt.load, micro.folder, provider=provider)
    assert f"did not load {NAMES[provider]}" in said and "--provider cpu" in said
    here.fails = "/src/python/x.cc:729 void f(A&, const B&) nodes are assigned to the CPU\nmore"
    said = refusal(rt.load, micro.folder, provider=provider)
    assert f"on {NAMES[provider]}: nodes are assigned to the CPU; pip" in said
    assert "--provider cpu" in said
    assert ("--opset 20" in said) == (provider != "cuda")


def test_a_package_that_does_not_load_or_finds_no_gpu(world, micro):
    here = world("tensorrt-rtx", plugin=True, devices=0)
    said = refusal(rt.load, micro.folder, provider="tensorrt-rtx")
    assert "finds no GPU" in said and "--provider cpu" in said
    here = world("tensorrt-rtx", plugin=True)
    here.unregistrable = "libcuda.so.1: cannot open shared object file"
    said = refusal(rt.load, micro.folder, provider="tensorrt-rtx")
    assert "does not load: libcuda.so.1" in said and "NVIDIA driver" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("provider", GPUS)
def test_here_there_is_none_and_it_says_so(micro, capfd, provider):
    """With the real onnxruntime, which prints nothing of its own either."""
    said = refusal(rt.load, micro.folder, provider=provider)
    assert NAMES[provider] in said and "--provider cpu" in said
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("backend", ["torch", "tensorrt-rtx"])
def test_other_engines_have_no_such_providers(micro, backend):
    manifest = replace(read_manifest(micro.folder), backend=backend)
    said = refusal(load_backend, micro.folder, manifest, "tensorrt")
    assert "'tensorrt'" in said and "--backend onnxruntime" in said


def test_the_command_line_names_all_of_them(run, micro, scenes):
    for command in ("generate", "verify", "bench"):
        text = " ".join(run(command, "--help").stdout.split())
        assert all(provider in text for provider in PROVIDERS), command
    said = run("verify", micro.folder, "--provider", "tpu", code=2).stderr
    assert all(provider in said for provider in PROVIDERS)

"""The run path of a plan, with a stand-in for TensorRT-RTX and for the GPU.

The stand-in keeps to the rules of the real one (shapes before addresses, all of them before a step)
and computes with the reference out of the very memory whose addresses it was given.
"""

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lumosx_rt.backends.tensorrt import run as running
from lumosx_rt.backends.tensorrt_rtx.run import TensorRtRtxBackend
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError, Unsupported
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import INPUTS, OUTPUT
from tests.helpers.inputs import bound, model_inputs

LIMITS = Limits.around((5, 8, 18), max_references=6, max_seeds=4).table()
INTEGERS = {"time", "bias_tiles", "group_index", "group_inverse"}
STREAM, CURRENT, WORKSPACE = 77, 7, 1000


def at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The tensor that lies at an address."""
    assert address
    count = torch.Size(shape).numel()
    size = max(1, count) * torch.empty(0, dtype=dtype).element_size()
    memory = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)[:count].view(shape)


class Context:
    def __init__(self, world: "World") -> None:
        self.world, self.shapes, self.addresses = world, {}, {}
        self.memory = 0

    def set_input_shape(self, name, shape):
        self.world.calls.append(f"shape {name}")
        self.shapes[name] = shape
        return name != self.world.refuses

    def infer_shapes(self):
        self.world.calls.append("infer")
        return [name for name in INPUTS if name not in self.shapes] + self.world.unknown

    def set_tensor_address(self, name, address):
        self.world.calls.append(f"address {name}")
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self):
        assert set(self.shapes) == set(INPUTS)
        self.world.calls.append("size")
        return WORKSPACE

    def set_device_memory(self, address, size):
        assert address and size == WORKSPACE
        self.world.calls.append("memory")
        self.memory = address

    def execute_async_v3(self, stream):
        assert stream == STREAM and self.memory
        assert set(self.addresses) == {*INPUTS, OUTPUT}
        self.world.calls.append("execute")
        if self.world.fails:
            self.world.log.log(1, "out of\nmemory")
            return False
        kinds = {name: torch.int64 for name in INTEGERS} | {"group_mask": torch.bool}
        given = [
            at(self.addresses[name], self.shapes[name], kinds.get(name, torch.float32))
            for name in INPUTS
        ]
        with torch.inference_mode():
            velocity = self.world.model(*given[:5], Structure(*given[5:]))
        at(self.addresses[OUTPUT], self.shapes["latents"], torch.float32).copy_(velocity)
        return True


class Settings:
    def __init__(self, world: "World") -> None:
        self.world = world

    def set_execution_context_allocation_strategy(self, strategy):
        self.world.said["allocation"] = strategy

    def create_runtime_cache(self):
        self.world.cache = SimpleNamespace(
            deserialize=lambda blob: self.world.said.update(found=blob),
            serialize=lambda: b"kernels",
        )
        return self.world.cache

    def set_runtime_cache(self, cache):
        assert cache is self.world.cache
        return True


class World:
    """A stand-in for the module: what it was told, and how it is to fail."""

    __version__ = "1.7.1.116"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="by the request")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="captured")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, WARNING=2)

    def __init__(self, model: LumosX) -> None:
        self.model = model
        self.calls: list[str] = []
        self.said: dict[str, object] = {}
        self.names = [*INPUTS, OUTPUT]
        self.unknown: list[str] = []
        self.refuses = ""
        self.fails = self.damaged = self.crowded = False
        self.streamable = 0

    def Runtime(self, log):
        self.log = log
        return SimpleNamespace(deserialize_cuda_engine=self.deserialize)

    def deserialize(self, blob):
        assert blob == b"plan"
        self.calls.append("deserialize")
        if self.damaged:
            self.log.log(1, "magic tag\ndoes not match")
            self.log.log(2, "a warning")
            return None
        self.settings = Settings(self)
        self.engine = SimpleNamespace(
            num_io_tensors=len(self.names),
            get_tensor_name=lambda i: self.names[i],
            streamable_weights_size=self.streamable,
            get_weight_streaming_automatic_budget=lambda: self.streamable // 2,
            weight_streaming_budget_v2=None,
            create_runtime_config=lambda: self.settings,
            create_execution_context=self.create_context,
        )
        return self.engine

    def create_context(self, settings):
        assert settings is self.settings
        self.calls.append("context")
        return None if self.crowded else Context(self)


class FakeStream:
    """A stream of the GPU that is not there. A captured function runs when its graph is launched;
    what is in `told` happened."""

    handle = STREAM
    told: list[str] = []
    capturable = True

    def wait_for(self, other: int) -> None:
        assert other == CURRENT
        self.told.append("wait")

    def captured(self, work):
        self.told.append("capture")
        if not self.capturable:
            raise Unsupported("operation not permitted when stream is capturing")
        return work

    def launch(self, graph) -> None:
        self.told.append("launch")
        graph()


def no_gpu(monkeypatch, told: list[str]) -> None:
    """Streams of a GPU that is not there, for the backends of both TensorRTs."""
    monkeypatch.setattr(running, "Stream", type("Stream", (FakeStream,), {"told": told}))
    current = SimpleNamespace(cuda_stream=CURRENT)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: handle)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Stand-in")


@pytest.fixture
def world(micro_bundle, monkeypatch) -> World:
    world = World(load_transformer(micro_bundle).eval())
    no_gpu(monkeypatch, world.calls)
    return world


@pytest.fixture
def backend(world, tmp_path):
    """`backend()`: the plan, loaded."""
    (tmp_path / "model.plan").write_bytes(b"plan")

    def load() -> TensorRtRtxBackend:
        kernels = tmp_path / "cache" / "kernels.bin"
        return TensorRtRtxBackend(world, tmp_path / "model.plan", LIMITS, kernels, "cpu")

    return load


def request_of(model: LumosX, *keys: str, seeds: int = 1, seed: int = 0):
    layouts = [SceneLayout.from_key(key) for key in keys]
    latents, time, text, references, template, structure = model_inputs(
        model.config, layouts, seeds, seed
    )
    return latents, int(time[0]), bound(text, references, template, structure, latents.shape)


def refusal(call, *args) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    "keys, seeds",
    [
        (["2x3x9+1+2.1", "2x3x9+0+4"], 3),
        (["2x3x5+0+-"], 1),
        (["1x1x1+0+-"] * 2, 2),
        (["5x8x18+1+2"], 1),
    ],
    ids=str,
)
def test_every_input_lies_where_tensorrt_was_told(world, backend, keys, seeds):
    latents, time, given = request_of(world.model, *keys, seeds=seeds)
    denoise = backend().bind(given)
    expected = EagerBackend(world.model).bind(given)
    for moment in (time, 1000 - time):
        assert torch.equal(denoise(latents, moment), expected(latents, moment))
    assert torch.equal(denoise(-latents, time), expected(-latents, time))


def test_the_order_of_what_is_said(world, backend):
    latents, time, given = request_of(world.model, "2x3x9+1+2")
    denoise = backend().bind(given)
    assert world.calls == [
        "deserialize",
        "context",
        *(f"shape {name}" for name in INPUTS),
        "infer",
        *(f"address {name}" for name in (*INPUTS, OUTPUT)),
        "size",
        "memory",
        "wait",
    ]
    bound = len(world.calls)
    denoise(latents, time)
    denoise(latents, time)
    assert world.calls[bound:] == ["execute"] * 2  # nothing is bound again


def test_the_settings_of_every_context(world, backend):
    backend()
    assert world.said == {"allocation": "by the request"}
    assert world.settings.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert world.settings.cuda_graph_strategy == "captured"
    assert world.engine.weight_streaming_budget_v2 is None


def test_streamed_weights_get_what_room_there_is(world, backend):
    world.streamable = 10
    backend()
    assert world.engine.weight_streaming_budget_v2 == 5


def test_kernels_are_kept_for_the_next_process(world, backend, tmp_path):
    latents, time, given = request_of(world.model, "2x3x9+1+2")
    denoise = backend().bind(given)
    kernels = tmp_path / "cache" / "kernels.bin"
    assert not kernels.exists() and "found" not in world.said
    denoise(latents, time)
    assert kernels.read_bytes() == b"kernels"
    backend()
    assert world.said["found"] == b"kernels"


def test_requests_do_not_disturb_each_other(world, backend):
    plan = backend()
    first = request_of(world.model, "2x3x9+1+2", seeds=2)
    second = request_of(world.model, "2x3x5+0+-", seed=1)
    bound = [(plan.bind(given), latents, time) for latents, time, given in (first, second)]
    results = [run(latents, time).clone() for run, latents, time in bound]
    for (run, latents, time), expected in zip(reversed(bound), reversed(results), strict=True):
        assert torch.equal(run(latents, time), expected)
    assert world.calls.count("context") == 2


def test_it_says_where_it_runs(backend):
    assert backend().describe() == {
        "backend": "tensorrt-rtx",
        "device": "NVIDIA Stand-in",
        "tensorrt_rtx": "1.7.1.116",
    }


# -- what goes wrong ----------------------------------------------------------------------------


def test_a_plan_that_cannot_be_read(world, backend):
    world.damaged = True
    assert "model.plan" in (said := refusal(backend)) and "magic tag does not match" in said


def test_a_plan_of_another_model(world, backend):
    world.names = ["x", "y"]
    assert "x, y" in refusal(backend)


@pytest.mark.parametrize(
    "fault, value, said",
    [
        ("crowded", True, "another context"),
        ("refuses", "references", "the shape of references"),
        ("unknown", ["text"], "without text"),
    ],
)
def test_a_request_that_is_not_taken(world, backend, fault, value, said):
    setattr(world, fault, value)
    assert said in refusal(backend().bind, request_of(world.model, "2x3x9+1+2")[2])
    assert "execute" not in world.calls


def test_a_step_that_fails(world, backend):
    latents, time, given = request_of(world.model, "2x3x9+1+2")
    denoise = backend().bind(given)
    world.fails = True
    said = refusal(denoise, latents, time)
    assert f"the step at time {time}" in said and "out of memory" in said


@pytest.mark.parametrize("keys, seeds", [(["6x3x9+1+2"], 1), (["2x3x9+0+-"] * 3, 1), (["2x3x9"
    "+0+-"], 5), (["2x3x9+1+6"], 1)], ids=str)  # fmt: skip
def test_what_the_plan_does_not_serve_never_reaches_it(world, backend, keys, seeds):
    given = request_of(world.model, *keys, seeds=seeds)[2]
    assert "got shape" in refusal(backend().bind, given)
    assert "context" not in world.calls

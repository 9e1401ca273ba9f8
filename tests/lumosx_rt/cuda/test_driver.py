"""The driver through a stand-in that keeps to its rules: contexts pushed and popped, handles freed.

`tests/gpu/nullgpu` runs the same with the real cuda-python, on a driver that launches nothing.
"""

import ctypes
import enum
import sys
from types import SimpleNamespace

import pytest

from lumosx_rt.cuda import driver
from lumosx_rt.cuda.facts import gpu_facts, memory
from lumosx_rt.cuda.stream import Stream
from lumosx_rt.reference.errors import LumosXError, TooLittleMemory, Unsupported


class Result(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


WORDS = {2: b"out of memory", 101: b"invalid device ordinal"}
ATTRIBUTES = {
    "COMPUTE_CAPABILITY_MAJOR": 9,
    "COMPUTE_CAPABILITY_MINOR": 0,
    "MULTIPROCESSOR_COUNT": 132,
    "L2_CACHE_SIZE": 60 << 20,
}


class World:
    """A stand-in for `cuda.bindings.driver`: every function returns an error, then its results."""

    CUdevice_attribute = SimpleNamespace(**{f"CU_DEVICE_ATTRIBUTE_{n}": n for n in ATTRIBUTES})
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread-local")

    def __init__(self) -> None:
        self.told: list[str] = []
        self.contexts, self.retained = 0, 0
        self.alive: set[str] = set()
        self.capturing = ""
        self.fails: dict[str, Result] = {}
        self.handles = 100

    def __getattr__(self, name: str):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def function(*given):
            self.told.append(name)
            if name in self.fails:
                return (self.fails[name],)
            if name not in FREE:
                assert self.contexts, f"{name} needs a current context"
            found = getattr(self, f"_{name}", lambda *given: ())(*given)
            return Result.CUDA_SUCCESS, *(found if isinstance(found, tuple) else (found,))

        return function

    def cuGetErrorString(self, error):
        if error in WORDS:
            return Result.CUDA_SUCCESS, WORDS[error]
        return Result.CUDA_ERROR_INVALID_DEVICE, None

    def made(self, kind: str) -> "Handle":
        self.handles += 1
        found = Handle(kind, self.handles)
        self.alive.add(str(found))
        return found

    def gone(self, handle) -> tuple[()]:
        self.alive.remove(str(handle))
        return ()

    def _cuDeviceGet(self, index):
        return index

    def _cuDeviceGetName(self, size, device):
        return ctypes.create_string_buffer(b"NVIDIA Stand-in", size).raw

    def _cuDeviceGetAttribute(self, which, device):
        return ATTRIBUTES[which]

    def _cuDriverGetVersion(self):
        return 13020

    def _cuDevicePrimaryCtxRetain(self, device):
        self.retained += 1
        return "context"

    def _cuDevicePrimaryCtxRelease(self, device):
        self.retained -= 1
        return ()

    def _cuCtxPushCurrent(self, context):
        self.contexts += 1
        return ()

    def _cuCtxPopCurrent(self):
        self.contexts -= 1
        return "context"

    def _cuMemGetInfo(self):
        return 30, 100

    def _cuStreamCreate(self, flags):
        assert flags == 1
        return self.made("stream")

    def _cuEventCreate(self, flags):
        return self.made("event")

    def _cuStreamBeginCapture(self, stream, mode):
        self.capturing = mode
        return ()

    def _cuStreamEndCapture(self, stream):
        self.capturing = ""
        return self.made("recorded")

    def _cuGraphInstantiate(self, recorded, flags):
        return self.made("graph")

    _cuStreamDestroy = _cuEventDestroy = _cuGraphDestroy = _cuGraphExecDestroy = gone


class Handle:
    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number = kind, number

    def __int__(self) -> int:
        return self.number

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


FREE = {  # of a context
    "cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDriverGetVersion",
    "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent",
}  # fmt: skip


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=made))
    driver.bindings.cache_clear()
    yield made
    assert made.contexts == made.retained == 0
    driver.bindings.cache_clear()


def test_what_a_gpu_is(world):
    facts = gpu_facts()
    assert facts == ("NVIDIA Stand-in", (9, 0), 132, 60 << 20, 100, 30, "13.2")
    assert memory() == (30, 100)


def test_errors_have_the_drivers_name_and_words(world):
    world.fails["cuDeviceGet"] = Result.CUDA_ERROR_INVALID_DEVICE
    with pytest.raises(Unsupported) as found:
        memory(3)
    assert str(found.value) == (
        "CUDA's cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE (invalid device ordinal)"
    )
    world.fails = {"cuStreamCreate": Result.CUDA_ERROR_OUT_OF_MEMORY}
    with pytest.raises(TooLittleMemory, match="out of memory"):
        Stream()
    world.fails = {"cuMemGetInfo": Result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED}
    with pytest.raises(Unsupported, match="CAPTURE_INVALIDATED$"):  # it has no words for this one
        memory()


def test_without_the_package_or_a_driver_it_says_what_to_install(world, monkeypatch):
    driver.bindings.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(Unsupported, match="pip install 'cuda-python"):
        gpu_facts()

    class Missing(World):
        def cuInit(self, flags):
            raise RuntimeError("Failed to dlopen libcuda.so.1\nand more")

    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=Missing()))
    with pytest.raises(Unsupported, match="cannot be loaded .Failed to dlopen libcuda.so.1.;"):
        gpu_facts()


def test_a_step_is_captured_once_and_launched_often(world):
    stream = Stream()
    stream.wait_for(77)
    assert world.alive == {f"stream {stream.handle}"}  # the event is gone
    seen = []
    graph = stream.captured(lambda: seen.append(world.capturing))
    assert seen == ["thread-local"] and world.capturing == ""
    for _ in range(3):
        stream.launch(graph)
    stream.synchronize()
    assert world.told.count("cuGraphLaunch") == 3 and world.told.count("cuGraphInstantiate") == 1
    assert {name.split()[0] for name in world.alive} == {"stream", "graph"}
    del graph, stream
    assert not world.alive


@pytest.mark.parametrize("where", ["work", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_a_failed_capture_leaves_nothing(world, where):
    stream = Stream()

    def work():
        if where == "work":
            raise KeyError("nothing to do with the GPU")

    world.fails = {where: Result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED}
    with pytest.raises(KeyError if where == "work" else LumosXError):
        stream.captured(work)
    world.fails = {}
    left = {name.split()[0] for name in world.alive} - {"recorded"}
    assert left == {"stream"} and world.contexts == 0
    assert ("recorded" in str(world.alive)) == (where == "work")  # dropped with the capture
    del stream

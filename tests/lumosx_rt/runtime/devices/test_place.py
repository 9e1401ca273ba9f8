"""Where the parts of an engine run, with backends that say where they are."""

from types import SimpleNamespace

import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.cuda import facts
from lumosx_rt.reference.errors import LumosXError, Unsupported
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime.devices import encoders
from lumosx_rt.runtime.devices.place import Devices
from lumosx_rt.runtime.devices.vae_precision import Verdict

GIB = 1 << 30
SIZE = rt.VideoSize(5, 32, 48)


@pytest.fixture
def gpu(monkeypatch):
    """As if torch found a GPU with 20 GiB free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(facts, "memory", lambda index=0: (20 * GIB, 24 * GIB))


def test_encoders_are_where_the_backend_is_unless_they_are_sent_elsewhere(gpu):
    there, here = SimpleNamespace(device="cuda"), SimpleNamespace(device="cpu")
    assert Devices.of(there) == ("cuda", "cuda") and Devices.of(here) == ("cpu", "cpu")
    assert Devices.of(there, "cpu") == ("cuda", "cpu")
    assert Devices.of(SimpleNamespace(), "cuda") == ("cpu", "cuda")  # it does not say
    with pytest.raises(Unsupported, match="got 'gpu', accepted are auto, cpu, cuda"):
        Devices.of(there, "gpu")


def test_a_gpu_that_torch_does_not_find(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Devices.of(SimpleNamespace(device="cuda")) == ("cuda", "cpu")  # a provider's own
    with pytest.raises(Unsupported, match="torch finds no GPU here"):
        Devices.of(SimpleNamespace(), "cuda")


def test_what_may_be_held_on_a_gpu(gpu, monkeypatch):
    there, here = Devices("cuda", "cuda"), Devices("cpu", "cpu")
    assert there.limit(None, 3 * GIB) == 23 * GIB  # what is free, and what it holds itself
    assert there.limit(7 * GIB, 3 * GIB) == 7 * GIB
    assert here.limit(None, 0) is None
    with pytest.raises(Unsupported, match="nothing of this engine runs on a GPU"):
        here.limit(7 * GIB, 0)

    def silent(index: int = 0) -> tuple[int, int]:
        raise Unsupported("cuda-python is not installed")

    monkeypatch.setattr(facts, "memory", silent)
    assert there.limit(None, 0) is None  # then nothing is planned, and it runs


def test_an_engine_loads_its_encoders_to_the_device(micro, micro_bundle, gpu, monkeypatch):
    """The backend is on a GPU: so are encoders, its weights are counted there, requests planned."""
    asked = []
    monkeypatch.setattr(
        encoders, "load_vae", lambda bundle, device: asked.append(device) or RealVae(bundle)
    )
    monkeypatch.setattr(encoders, "in_bfloat16", lambda vae: (None, Verdict(30.0, 0.5)))
    here = rt.load(micro.folder, provider="cpu")
    here.backend.device = "cuda"
    engine = rt.Engine(here.folder, here.manifest, here.backend, micro_bundle)
    assert engine.devices == ("cuda", "cuda") and engine.vae is not None and asked == ["cuda"]
    weights = sum(r.bytes for n, r in here.manifest.files.items() if n.startswith("transformer/"))
    assert weights > 100_000 and engine.max_device_memory == 20 * GIB + weights
    plan = engine.plan(builtin_scenes()[1], size=SIZE)
    vae = engine._encoder_facts.vae_bytes
    assert plan.device is not None and plan.device.held_bytes == weights + 3 * vae // 2
    assert plan.device.limit_bytes == engine.max_device_memory and plan.limit_bytes is None
    assert plan.decode_bytes < plan.held_bytes + 2**20  # videos alone are here
    small = rt.Engine(
        here.folder, here.manifest, here.backend, micro_bundle, max_device_memory=weights
    )
    with pytest.raises(LumosXError, match="allow more with --max-device-memory, or"):
        small.plan(builtin_scenes()[1], size=SIZE)


def RealVae(bundle):
    from lumosx_rt.reference.encoders.wan_vae import load_vae

    return load_vae(bundle)


def test_the_command_line_names_the_flags(run):
    text = run("generate", "--help").stdout
    assert "--max-device-memory" in text and "--encoders-device" in text

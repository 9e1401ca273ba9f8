"""What is rehearsed on the null GPU, each stage in a process of its own; prints one line of JSON.

    out/nullgpu/2.13.0/python -m tests.gpu.nullgpu.stages operators
    out/nullgpu/2.13.0/python -m tests.gpu.nullgpu.stages package bf16 2 FOLDER
    out/nullgpu/2.13.0/python -m tests.gpu.nullgpu.stages serve PACKAGE

Values are no one's here: every tensor is zeros, or what lay in memory. What is checked is that
everything is compiled, loaded, launched, captured and copied as on a GPU, and nothing illegally.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from tests.gpu.nullgpu.counts import GIB, Facts, counted
from tests.gpu.nullgpu.users import engine, suite, training

LAYOUTS = (  # key, streams, seeds
    ("5x8x18+2+3.3", 2, 2),
    ("21x30x52+0+-", 2, 1),
    ("21x30x52+0+4", 2, 1),
    ("21x30x52+4+4.4.4", 2, 1),
    ("21x30x52+4+4.4.4", 2, 4),
)


# -- operators ------------------------------------------------------------------------------------


def operators() -> Facts:
    """Compile every operator alone, for all sizes, with bool groups and axes that may be empty."""
    from torch.export import Dim

    from tests.kernels.cases import Case
    from tests.kernels.traced import LIMITS, PRODUCTS, SHAPES, Joined, calls

    case, launched = Case("frames of one tile"), {}
    dims = {axis: Dim(axis, min=low, max=high) for axis, (_, low, high) in LIMITS.items()}
    fixed = {"H": case.heads, "D": case.head_dim, "L": case.k.shape[1]}
    fixed |= {"c": case.heads * case.head_dim, "p": case.head_dim // 2}
    for name, (function, tensors) in calls(case, torch.bfloat16).items():
        if name not in SHAPES:
            continue
        axes = [
            [one for part in shape.split() for one in PRODUCTS.get(part, part).split()]
            for shape in SHAPES[name]
        ]

        def zeros(axes: list[str], dtype: torch.dtype, sizes: dict[str, int]) -> torch.Tensor:
            shape = [sizes[axis] if axis in sizes else int(axis) for axis in axes]
            return torch.zeros(shape, dtype=dtype, device="cuda")

        pairs = [(own, tensor.dtype) for own, tensor in zip(axes, tensors, strict=True)]
        hints = {axis: hint for axis, (hint, _, _) in LIMITS.items()} | fixed
        program = torch.export.export(
            Joined(function, SHAPES[name]),
            tuple(zeros(*pair, hints) for pair in pairs),
            dynamic_shapes=(
                tuple({i: dims[a] for i, a in enumerate(own) if a in dims} for own in axes),
            ),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        path = torch._inductor.aoti_compile_and_package(
            program, inductor_configs={"scalar_asserts": False}
        )
        run = torch._inductor.aoti_load_package(path)
        before = counted("driver_launches")
        for sizes in (hints, hints | {"R": 0, "s": 1, "e": 1}):  # the last has no references
            run(*(zeros(*pair, sizes) for pair in pairs))
        launched[name] = counted("driver_launches") - before
    return {"launches": launched}


def fake() -> Facts:
    """Follow a step of 30 blocks, encoding and decoding at full size, on tensors without values.

    An operation of tensors on two devices raises there. Inputs of encoders come from the CPU.
    """
    from diffusers import AutoencoderKLWan
    from torch._subclasses.fake_tensor import FakeTensorMode

    from lumosx_rt.kernels.fused import fused_ops
    from lumosx_rt.reference.backbones.config import PRESETS
    from lumosx_rt.reference.backbones.wan import LumosX
    from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
    from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
    from lumosx_rt.reference.sampling.inputs import random_inputs

    config, steps = PRESETS["1.3b"], 0
    for key, streams, seeds in LAYOUTS:
        layout = SceneLayout.from_key(key)
        latents, time_, inputs = random_inputs(config, [layout] * streams, seeds)
        mode = FakeTensorMode()
        with mode:
            with torch.device("cuda"):
                model = LumosX(config, torch.bfloat16).eval().requires_grad_(False)
            for module in model.modules():
                module._buffers = {n: b.cuda() for n, b in module._buffers.items()}
            model.ops = fused_ops((9, 0), self_attention="hybrid:flash")

            def there(x: torch.Tensor, mode: FakeTensorMode = mode) -> torch.Tensor:
                return mode.from_tensor(x).cuda()

            tensors = {name: there(x) for name, x in inputs.tensors.items()}
            arguments = inputs.changed(**tensors).arguments("cuda")
            velocity = model(there(latents), there(time_), *arguments)
            assert velocity.device.type == "cuda" and velocity.shape == latents.shape
            steps += 1
    with FakeTensorMode() as mode:
        with torch.device("cuda"):
            coder = VideoAutoencoder(AutoencoderKLWan())
        images = torch.zeros(2, 3, 480, 832, dtype=torch.uint8)
        encoded = coder.encode_images(images)
        decoded = coder.decode(torch.zeros(1, 16, 3, 60, 104), tile=(30, 52))
        places = {str(encoded.device), str(decoded.device)}
        try:  # control
            torch.zeros(2, device="cuda") + torch.zeros(2)
            mixed = ""
        except RuntimeError as error:
            mixed = str(error).splitlines()[0]
    return {
        "blocks": config.num_layers,
        "steps": steps,
        "returned_to": sorted(places),
        "encoded": list(encoded.shape),
        "decoded": list(decoded.shape),
        "mixed": mixed,
    }


# -- packages -------------------------------------------------------------------------------------


def package(precision: str, layers: str, folder: str) -> Facts:
    """Compile a model of full width and so many blocks: bf16, fp8 (linears), fp8-attention."""
    from benchmarks.gpu.forward import in_e4m3, random_model
    from benchmarks.gpu.scale import full
    from lumosx_rt.export.aoti import compile_package
    from lumosx_rt.kernels.fused import fused_ops, named

    scale = full()
    scale = replace(scale, config=replace(scale.config, num_layers=int(layers)))
    model = random_model(scale, torch.bfloat16)
    ops = {
        "bf16": lambda: fused_ops((9, 0)),
        "fp8": lambda: fused_ops((9, 0), e4m3_rows=True),
        "fp8-attention": lambda: fused_ops((9, 0), e4m3_rows=True, e4m3_attention=True),
    }[precision]()
    if precision != "bf16":
        model = in_e4m3(model)
    path = Path(folder, f"{precision}-{layers}.pt2")
    facts = compile_package(model, path, ops=ops)
    attention = "triton, e4m3" if precision == "fp8-attention" else named("auto", (9, 0))
    megabytes = round(path.stat().st_size / 1e6)
    return facts | {"megabytes": megabytes, "self_attention": attention, "path": str(path)}


def serve(path: str) -> Facts:
    """Load a package that another process compiled; bind, capture and replay every layout."""
    from lumosx_rt.backends.torch.run import TorchBackend
    from lumosx_rt.reference.backbones.config import PRESETS
    from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
    from lumosx_rt.reference.sampling.inputs import random_inputs
    from lumosx_rt.reference.scenes.video_size import VideoSize
    from lumosx_rt.runtime.memory import MemoryNeed, denoise_bytes

    backend, found, config = TorchBackend(Path(path), "cuda"), [], PRESETS["1.3b"]
    for key, streams, seeds in LAYOUTS:
        layout = SceneLayout.from_key(key)
        latents, _, inputs = random_inputs(config, [layout] * streams, seeds)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = counted("driver_launches")
        run = backend.bind(inputs)
        velocity = run(latents, 500)
        captured = counted("driver_launches") - before
        assert run(latents, 400).shape == velocity.shape == latents.shape
        replayed = counted("driver_launches") - before - captured
        need = MemoryNeed(
            config=config, backend="torch", number_bytes=2, layout=layout,
            size=VideoSize(81, 480, 832), seeds=seeds,
        )  # fmt: skip
        found.append(
            {
                "layout": key,
                "streams": streams,
                "seeds": seeds,
                "launches": captured // 3,  # two calls to warm up, one that is captured
                "launches_replayed": replayed,
                "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
                "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
                "planned_gib": round(denoise_bytes(need, streams) / GIB, 2),
            }
        )
        del run
    return {"layouts": found}


def threads(path: str) -> Facts:
    """Capture while another thread allocates and synchronizes; then as a control in mode global."""
    from lumosx_rt.backends.torch import run as backend_module
    from lumosx_rt.reference.backbones.config import PRESETS
    from lumosx_rt.reference.errors import LumosXError
    from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
    from lumosx_rt.reference.sampling.inputs import random_inputs

    backend = backend_module.TorchBackend(Path(path), "cuda")
    layout = SceneLayout.from_key("5x8x18+2+3.3")
    latents, _, inputs = random_inputs(PRESETS["1.3b"], [layout] * 2, 1)
    stop, busy = threading.Event(), threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            torch.empty(2**28, dtype=torch.uint8, device="cuda")
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            busy.set()

    def captures() -> int:
        """How many of ten requests are captured beside the other thread."""
        done = 0
        for _ in range(10):
            try:
                backend.bind(inputs)(latents, 500)
                done += 1
            except (LumosXError, RuntimeError):
                torch.cuda.synchronize()
        return done

    class Quiet(threading.Thread):
        """What a broken capture raises in the other thread is expected of the control."""

        def run(self) -> None:
            while not stop.is_set():
                try:
                    disturb()
                except RuntimeError:
                    continue

    other = Quiet()
    other.start()
    busy.wait(60)
    try:
        beside = captures()
        graph = torch.cuda.graph
        with patch.object(torch.cuda, "graph", lambda g, **_: graph(g)):  # torch's own mode
            control = captures()
    finally:
        stop.set()
        other.join()
    return {"captured": beside, "captured_in_mode_global": control}


def driver() -> Facts:
    """Ask the driver through cuda-python; capture and launch a graph of a stream of our own."""
    from lumosx_rt.backends.torch.toolchain import check_toolchain
    from lumosx_rt.cuda.driver import call
    from lumosx_rt.cuda.facts import gpu_facts
    from lumosx_rt.cuda.stream import Stream
    from lumosx_rt.reference.errors import LumosXError

    check_toolchain("cuda")
    facts = gpu_facts()
    held = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    used = facts.free_bytes - gpu_facts().free_bytes
    stream, other = Stream(), torch.cuda.Stream()
    stream.wait_for(other.cuda_stream)
    with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
        held.zero_()
    graph = stream.captured(lambda: None)
    stream.launch(graph)
    stream.synchronize()
    try:
        call("cuDeviceGet", 3)
        said = ""
    except LumosXError as error:
        said = str(error)
    return {"gpu": facts._asdict(), "used_bytes": used, "another_gpu": said}


STAGES: dict[str, Callable[..., Facts]] = {
    f.__name__: f
    for f in (driver, fake, operators, package, serve, threads, engine, training, suite)
}


def main(name: str, *given: str) -> None:
    started = time.monotonic()
    if name != "training":
        torch.set_grad_enabled(False)
    facts = STAGES[name](*given)
    facts |= {"refused": counted("refused"), "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({"stage": name, "torch": torch.__version__} | facts))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""onnxruntime on a CPU, or on the GPU provider that was asked for: never a silent fall-back.

Inputs are bound once per request; a step copies the latents into a bound buffer and runs.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumosx_rt.backends.common.devices import PROVIDERS, Provider
from lumosx_rt.backends.common.odd_sizes import takes_odd_sizes
from lumosx_rt.backends.onnxruntime.providers import COMPILING, NAMES, Serving, open_session
from lumosx_rt.reference.errors import LumosXError, Unsupported
from lumosx_rt.reference.packages import require
from lumosx_rt.reference.process import check_process
from lumosx_rt.reference.sampling.inputs import OUTPUT, Denoiser, Inputs, check_shapes


class OnnxRuntimeBackend:
    """One session for every layout. Raises LumosXError where the graph or the provider fails.

    serving: the sizes that the two TensorRTs compile for, and only they need.
    """

    def __init__(
        self,
        graph: Path,
        provider: Provider = "auto",
        threads: int | None = None,
        serving: Serving | None = None,
    ) -> None:
        require("an engine of the backend onnxruntime", "onnxruntime")
        import onnxruntime

        self._ort: Any = onnxruntime
        self.provider = chosen(onnxruntime, provider)
        self.device = device_of(self.provider)
        options = session_options(onnxruntime, threads)
        self.session: Any = open_session(onnxruntime, graph, self.provider, options, serving)
        self.limits = serving.limits.table() if serving and provider in COMPILING else None
        self.threads = options.intra_op_num_threads
        self._pid = os.getpid()

    @takes_odd_sizes
    def bind(self, inputs: Inputs) -> Denoiser:
        check_process(self._pid, "an engine of the backend onnxruntime")
        if self.limits is not None:  # before anything takes memory
            self._check(shapes_of(inputs))
        given = BoundInputs(self._ort, inputs, self.provider)
        out = given.add(OUTPUT, np.zeros(inputs.shape, np.float32))
        binding = self.session.io_binding()
        for name in ("latents", "time", *inputs.tensors):
            binding.bind_ortvalue_input(name, given.values[name])
        binding.bind_ortvalue_output(OUTPUT, given.values[OUTPUT])

        def denoise(latents: Tensor, time: int) -> Tensor:
            given.set(latents, time)
            run(self.session, binding, time)
            on_cpu = self.provider == "cpu"
            return torch.from_numpy(out if on_cpu else given.values[OUTPUT].numpy())

        return denoise

    def describe(self) -> dict[str, str]:
        return described(self._ort, self.provider, self.threads)

    def _check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        try:
            check_shapes(shapes, self.limits or {})
        except LumosXError as error:
            raise Unsupported(
                f"{error}; --provider {self.provider} compiles for the engine's own video size, "
                "the others take every size: --provider cpu or cuda"
            ) from None


class BoundInputs:
    """What a call is bound to, where the provider wants it: arrays, and OrtValues made of them.

    On a CPU onnxruntime works in these very arrays: they have to live as long as what is bound.
    """

    def __init__(self, ort: Any, inputs: Inputs, provider: str) -> None:
        self._make, self.device = ort.OrtValue.ortvalue_from_numpy, device_of(provider)
        self.arrays: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.add("latents", np.zeros(inputs.shape, np.float32))
        self.add("time", np.zeros(inputs.shape[:1], np.int64))
        for name, tensor in inputs.tensors.items():
            self.add(name, np.ascontiguousarray(tensor.numpy()))

    def add(self, name: str, array: Any) -> Any:
        self.arrays[name] = array
        self.values[name] = self._make(array, self.device, 0)
        return array

    def set(self, latents: Tensor, time: int) -> None:
        """Feed one step."""
        self.arrays["latents"][...] = latents.numpy()
        self.arrays["time"][...] = time
        if self.device != "cpu":
            for name in ("latents", "time"):
                self.values[name].update_inplace(self.arrays[name])


def shapes_of(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all the graph's inputs."""
    static = {name: tuple(tensor.shape) for name, tensor in inputs.tensors.items()}
    return {"latents": inputs.shape, "time": inputs.shape[:1]} | static


def device_of(provider: str) -> str:
    return "cpu" if provider == "cpu" else "cuda"


def chosen(ort: Any, provider: Provider) -> str:
    """A provider for what was asked. Raises LumosXError for one that does not exist."""
    if provider not in PROVIDERS:
        raise Unsupported(f"provider: got '{provider}', accepted are {', '.join(PROVIDERS)}")
    if provider != "auto":
        return provider
    return "cuda" if NAMES["cuda"] in ort.get_available_providers() else "cpu"


def session_options(ort: Any, threads: int | None = None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1  # the graph is a chain
    options.enable_mem_pattern = False  # shapes change from request to request
    options.log_severity_level = 4  # errors are raised too
    # its own 8-bit kernels know no e4m3: there and back stays as it stands in the graph
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def run(session: Any, binding: Any, time: int) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise Unsupported(f"onnxruntime failed at time {time}: {reason}") from None


def described(ort: Any, provider: str, threads: int) -> dict[str, str]:
    where = f"cpu, {threads} threads" if provider == "cpu" else provider
    return {"backend": "onnxruntime", "device": where, "onnxruntime": ort.__version__}

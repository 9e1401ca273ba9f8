"""onnxruntime on a CPU, or on CUDA where it really loads: never a silent fall-back.

Inputs are bound once per request; a step copies the latents into a bound buffer and runs.
"""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lumosx_rt.backends import Denoiser, Inputs
from lumosx_rt.export.program import INPUTS, OUTPUT
from lumosx_rt.reference.errors import LumosXError

Provider = Literal["auto", "cpu", "cuda"]
_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeBackend:
    """One session for every layout. Raises LumosXError where the graph or the provider fails."""

    def __init__(
        self, graph: Path, provider: Provider = "auto", threads: int | None = None
    ) -> None:
        import onnxruntime

        self._ort: Any = onnxruntime
        if provider not in ("auto", *_NAMES):
            raise LumosXError(f"provider: got '{provider}', accepted are auto, {', '.join(_NAMES)}")
        if provider == "auto":
            provider = "cuda" if _NAMES["cuda"] in onnxruntime.get_available_providers() else "cpu"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1  # the graph is a chain
        options.enable_mem_pattern = False  # shapes change from request to request
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                graph, options, providers=[(_NAMES[provider], _options(provider))]
            )
        except Exception as error:  # onnxruntime's own exceptions share no base class
            reason = str(error).splitlines()[0]
            raise LumosXError(f"{graph.name}: onnxruntime cannot load it: {reason}") from None
        if self.session.get_providers()[0] != _NAMES[provider]:
            raise LumosXError(
                f"onnxruntime did not load {_NAMES[provider]} (its CUDA libraries are missing or "
                "do not match); install them, or ask for the CPU with --provider cpu"
            )
        self.provider = provider
        self.threads = options.intra_op_num_threads

    def bind(self, inputs: Inputs) -> Denoiser:
        device = "cuda" if self.provider == "cuda" else "cpu"
        static = (inputs.text, inputs.references, inputs.template, *inputs.structure)
        # on a CPU onnxruntime works in these very arrays, so they live as long as `denoise` does
        arrays: dict[str, Any] = {
            "latents": np.zeros(inputs.shape, np.float32),
            "time": np.zeros(inputs.shape[:1], np.int64),
            OUTPUT: np.zeros(inputs.shape, np.float32),
            **{
                name: np.ascontiguousarray(tensor.numpy())
                for name, tensor in zip(INPUTS[2:], static, strict=True)
            },
        }
        make = self._ort.OrtValue.ortvalue_from_numpy
        values = {name: make(array, device, 0) for name, array in arrays.items()}
        binding = self.session.io_binding()
        for name in INPUTS:
            binding.bind_ortvalue_input(name, values[name])
        binding.bind_ortvalue_output(OUTPUT, values[OUTPUT])

        def denoise(latents: Tensor, time: int) -> Tensor:
            arrays["latents"][...] = latents.numpy()
            arrays["time"][...] = time
            if device != "cpu":
                for name in ("latents", "time"):
                    values[name].update_inplace(arrays[name])
            try:
                self.session.run_with_iobinding(binding)
            except Exception as error:
                reason = str(error).splitlines()[0]
                raise LumosXError(f"onnxruntime failed at time {time}: {reason}") from None
            return torch.from_numpy(arrays[OUTPUT] if device == "cpu" else values[OUTPUT].numpy())

        return denoise

    def describe(self) -> dict[str, str]:
        where = f"{self.provider}, {self.threads} threads" if self.provider == "cpu" else "cuda"
        return {"backend": "onnxruntime", "device": where, "onnxruntime": self._ort.__version__}


def _options(provider: str) -> dict[str, str]:
    # grow by what is asked for: requests of different shapes would double the arena over and over
    return {"arena_extend_strategy": "kSameAsRequested"} if provider == "cuda" else {}

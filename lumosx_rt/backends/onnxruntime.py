"""onnxruntime on a CPU, or on the GPU provider that was asked for: never a silent fall-back.

Inputs are bound once per request; a step copies the latents into a bound buffer and runs.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumosx_rt.backends import Denoiser, Inputs
from lumosx_rt.backends.providers import (
    COMPILING,
    NAMES,
    PROVIDERS,
    Provider,
    Serving,
    open_session,
)
from lumosx_rt.export.program import INPUTS, OUTPUT, check_shapes
from lumosx_rt.reference.errors import LumosXError


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
        import onnxruntime

        self._ort: Any = onnxruntime
        if provider not in PROVIDERS:
            raise LumosXError(f"provider: got '{provider}', accepted are {', '.join(PROVIDERS)}")
        if provider == "auto":
            provider = "cuda" if NAMES["cuda"] in onnxruntime.get_available_providers() else "cpu"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1  # the graph is a chain
        options.enable_mem_pattern = False  # shapes change from request to request
        options.log_severity_level = 3
        # its own 8-bit kernels know no e4m3: there and back stays as it stands in the graph
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session: Any = open_session(onnxruntime, graph, provider, options, serving)
        self.limits = serving.limits.table() if serving and provider in COMPILING else None
        self.provider = provider
        self.threads = options.intra_op_num_threads

    def bind(self, inputs: Inputs) -> Denoiser:
        device = "cpu" if self.provider == "cpu" else "cuda"
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
        if self.limits is not None:
            self._check({name: arrays[name].shape for name in INPUTS})
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
        where = f"cpu, {self.threads} threads" if self.provider == "cpu" else self.provider
        return {"backend": "onnxruntime", "device": where, "onnxruntime": self._ort.__version__}

    def _check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        try:
            check_shapes(shapes, self.limits or {})
        except LumosXError as error:
            raise LumosXError(
                f"{error}; --provider {self.provider} compiles for the engine's own video size, "
                "the others take every size: --provider cpu or cuda"
            ) from None

"""A TensorRT-RTX plan: what it has beside TensorRT's.

Kernels are made for a request's shapes when it is bound, and kept in the user cache for the next
process; it captures a step itself.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lumosx_rt.backends.tensorrt.run import TensorRtBackend
from lumosx_rt.reference.files import replacing


class TensorRtRtxBackend(TensorRtBackend):
    """One plan for every layout within its limits. Raises LumosXError where TensorRT refuses.

    kernels: the file that keeps what was compiled for shapes.
    """

    backend, title, version_name = "tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx"
    captured_by_us = False

    def __init__(
        self,
        trt: Any,
        plan: Path,
        limits: Mapping[str, Sequence[int]],
        kernels: Path,
        device: str = "cuda",
    ) -> None:
        super().__init__(trt, plan, limits, device)
        self._kernels = kernels
        # eager: no step may compute otherwise than the one before it
        specialization = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._settings.dynamic_shapes_kernel_specialization_strategy = specialization
        self._settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = self._settings.create_runtime_cache()
        with suppress(OSError):
            self._cache.deserialize(kernels.read_bytes())  # it refuses what is not of this GPU
        self._settings.set_runtime_cache(self._cache)

    def _ran(self) -> None:
        with suppress(OSError):  # a read-only home costs compiling again, nothing else
            with replacing(self._kernels) as temporary:
                temporary.write_bytes(memoryview(self._cache.serialize()))

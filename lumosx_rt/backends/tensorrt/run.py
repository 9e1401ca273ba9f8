"""A plan of either TensorRT on the GPU it was built for.

Every request has an execution context of its own, with memory for its shapes and all its inputs in
place; a step copies the latents in and runs. The first step runs as it is, the others are one
captured graph. The module is a parameter: `tensorrt`, or with more settings `tensorrt_rtx`.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.backends.common.odd_sizes import takes_odd_sizes
from lumosx_rt.cuda.stream import Graph, Stream
from lumosx_rt.reference.errors import LumosXError, Unsupported
from lumosx_rt.reference.sampling.inputs import INPUTS, OUTPUT, Denoiser, Inputs, check_shapes

log = logging.getLogger("lumosx_rt")


class TensorRtBackend:
    """One plan for every layout within its limits. Raises LumosXError where TensorRT refuses.

    trt: the module. limits: {axis: [least, most]} of the plan. device: where the buffers lie.
    """

    backend, title, version_name = "tensorrt", "TensorRT", "tensorrt"
    captured_by_us = True
    """Whether TensorRT leaves capturing a step to its caller."""

    def __init__(
        self, trt: Any, plan: Path, limits: Mapping[str, Sequence[int]], device: str = "cuda"
    ) -> None:
        self._trt, self._limits, self.device = trt, limits, device
        self._log = _log(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise Unsupported(f"{plan.name}: {self.title} cannot load it: {self._log.reason()}")
        count = self._engine.num_io_tensors
        names = {self._engine.get_tensor_name(i) for i in range(count)}
        if names != {*INPUTS, OUTPUT}:
            raise Unsupported(f"{plan.name}: its tensors are {', '.join(sorted(names))}")
        if self._engine.streamable_weights_size:
            budget = self._engine.get_weight_streaming_automatic_budget()
            self._engine.weight_streaming_budget_v2 = budget
        self._settings = self._engine.create_runtime_config()
        self._settings.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )

    @takes_odd_sizes
    def bind(self, inputs: Inputs) -> Denoiser:
        latents = torch.zeros(inputs.shape)
        time = torch.zeros(inputs.shape[:1], dtype=torch.int64)
        tensors = inputs.feed(latents, time)
        check_shapes({name: x.shape for name, x in tensors.items()}, self._limits)
        context = self._engine.create_execution_context(self._settings)
        self._demand(context is not None, "another context")
        for name, x in tensors.items():
            self._demand(context.set_input_shape(name, tuple(x.shape)), f"the shape of {name}")
        unknown = context.infer_shapes()
        self._demand(not unknown, f"a request without {', '.join(unknown)}")
        buffers = {name: _Buffer(x.shape, x.dtype, self.device) for name, x in tensors.items()}
        for name, x in tensors.items():
            buffers[name].view.copy_(x)
        buffers[OUTPUT] = _Buffer(inputs.shape, torch.float32, self.device)
        for name, buffer in buffers.items():
            self._demand(context.set_tensor_address(name, buffer.address), f"the buffer of {name}")
        size = context.update_device_memory_size_for_shapes()
        buffers["workspace"] = _Buffer((size,), torch.uint8, self.device)
        context.set_device_memory(buffers["workspace"].address, size)
        stream, graph, steps = Stream(), None, 0
        # the inputs are in place before another stream reads them
        stream.wait_for(torch.cuda.current_stream().cuda_stream)

        @torch.inference_mode()
        def denoise(latents: Tensor, time: int) -> Tensor:
            nonlocal graph, steps

            def enqueue() -> None:
                done = context.execute_async_v3(stream.handle)
                self._demand(done, f"the step at time {time}")

            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
                buffers["latents"].view.copy_(latents)
                buffers["time"].view.fill_(time)
                if steps == 1 and self.captured_by_us:
                    graph = self._captured(stream, enqueue)
                if graph is None:
                    enqueue()
                else:
                    stream.launch(graph)
                velocity = buffers[OUTPUT].view.cpu()  # waits for the stream
            steps += 1
            if steps == 1:
                self._ran()
            return velocity

        return denoise

    def describe(self) -> dict[str, str]:
        where = torch.cuda.get_device_name()
        return {
            "backend": self.backend,
            "device": where,
            self.version_name: self._trt.__version__,
        }

    def _captured(self, stream: Stream, enqueue: Callable[[], None]) -> Graph | None:
        """A step as a graph; None, and never again, for a plan that cannot be captured."""
        try:
            return stream.captured(enqueue)
        except LumosXError as error:
            log.info("%s: steps run without a graph: %s", self.title, error)
            self.captured_by_us = False
            return None

    def _ran(self) -> None:
        """A request has made its first step."""

    def _demand(self, granted: bool, what: str) -> None:
        if not granted:
            raise Unsupported(f"{self.title} refuses {what}: {self._log.reason()}")


class _Buffer:
    """Device memory seen as a tensor. Its address is never null, which TensorRT demands even of
    tensors without elements."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: str) -> None:
        size = math.prod(shape)
        storage = torch.zeros(max(1, size), dtype=dtype, device=device)
        self.address = storage.data_ptr()
        self.view = storage[:size].view(*shape)


def _log(trt: Any) -> Any:
    """A TensorRT logger that remembers the last error."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.error = message

        def reason(self) -> str:
            return " ".join(self.error.split()) or "no reason was given"

    return Log()

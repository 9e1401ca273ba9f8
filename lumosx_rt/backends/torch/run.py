"""torch: the compiled package, on a CPU, or on CUDA as one captured graph per bound request.

Nothing is recompiled, whatever the layout. `check_package` comes first: loading runs code.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lumosx_rt.backends.common.odd_sizes import takes_odd_sizes
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.process import check_process
from lumosx_rt.reference.sampling.inputs import Denoiser, Inputs, check_shapes

Run = Callable[[], Tensor]
_WARM_UP = 2  # calls before a capture, which load kernels and grow workspaces


class TorchBackend:
    """One package for every layout. Raises LumosXError where it cannot be loaded, or fails.

    device: "cpu" or "cuda", the one it was compiled for. Threads of a CPU are torch's.
    """

    def __init__(self, package: Path, device: str) -> None:
        self.device, self._pid = device, os.getpid()
        try:
            # What `aoti_load_package` comes down to, without asking a C++ compiler (which may be
            # missing) about the processor on the way. True: one caller at a time, because the
            # bookkeeping for more cannot be captured.
            self._model = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, -1)
        except Exception as error:  # whatever a damaged archive or library makes of it
            raise Unsupported(f"{package.name}: torch cannot load it: {_reason(error)}") from None

    @takes_odd_sizes
    def bind(self, inputs: Inputs) -> Denoiser:
        check_process(self._pid, "an engine of the backend torch")
        latents = torch.zeros(inputs.shape)
        time = torch.zeros(inputs.shape[:1], dtype=torch.int64)
        feed = inputs.feed(latents, time)
        check_shapes({name: x.shape for name, x in feed.items()})
        static = tuple(x.to(self.device).contiguous() for x in feed.values())

        @torch.inference_mode()
        def call() -> Tensor:
            (velocity,) = self._model.run(list(static))
            return velocity

        run: Run | None = call if self.device == "cpu" else None

        @torch.inference_mode()
        def denoise(latents: Tensor, time: int) -> Tensor:
            nonlocal run
            static[0].copy_(latents)
            static[1].fill_(time)
            try:
                run = run or _captured(call)
                return run().cpu()
            except RuntimeError as error:
                raise Unsupported(f"torch failed at time {time}: {_reason(error)}") from None

        return denoise

    def describe(self) -> dict[str, str]:
        cpu = f"cpu, {torch.get_num_threads()} threads"
        where = cpu if self.device == "cpu" else torch.cuda.get_device_name()
        return {"backend": "torch", "device": where, "torch": torch.__version__}


def _captured(call: Run) -> Run:
    """A call as one CUDA graph over the same buffers, replayed; its result is overwritten."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        velocity = call()

    def replay() -> Tensor:
        graph.replay()
        return velocity

    return replay


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

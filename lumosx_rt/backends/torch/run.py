"""torch: the compiled package, on a CPU, or on CUDA as one captured graph per bound request.

Nothing is recompiled, whatever the layout. `check_package` comes first: loading runs code.
"""

import os
import re
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from lumosx_rt.backends.common.odd_sizes import takes_odd_sizes
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.process import check_process
from lumosx_rt.reference.sampling.inputs import Denoiser, Inputs, check_shapes

Run = Callable[[], Tensor]
_WARM_UP = 2  # calls before a capture, which load kernels and grow workspaces
_CAPTURING = threading.Lock()
_SAID = re.compile(r"Exception in aoti_torch: *(.*)")


class TorchBackend:
    """One package for every layout. Raises LumosXError where it cannot be loaded, or fails.

    device: "cpu" or "cuda", the one it was compiled for. Threads of a CPU are torch's.
    """

    def __init__(self, package: Path, device: str) -> None:
        self.device, self._pid = device, os.getpid()
        # the GPU that is current now stays this package's, whatever a caller's thread has
        self._index = torch.cuda.current_device() if device == "cuda" else -1
        try:
            # What `aoti_load_package` comes down to, without asking a C++ compiler (which may be
            # missing) about the processor on the way. True: one caller at a time, because the
            # bookkeeping for more cannot be captured.
            self._model = torch._C._aoti.AOTIModelPackageLoader(
                str(package), "model", True, 1, self._index
            )
        except Exception as error:  # whatever a damaged archive or library makes of it
            raise Unsupported(f"{package.name}: torch cannot load it: {_reason(error)}") from None

    @takes_odd_sizes
    def bind(self, inputs: Inputs) -> Denoiser:
        check_process(self._pid, "an engine of the backend torch")
        latents = torch.zeros(inputs.shape)
        time = torch.zeros(inputs.shape[:1], dtype=torch.int64)
        feed = inputs.feed(latents, time)
        check_shapes({name: x.shape for name, x in feed.items()})
        with self._here():
            static = tuple(x.to(self.device).contiguous() for x in feed.values())

        @torch.inference_mode()
        def call() -> Tensor:
            (velocity,) = self._model.run(list(static))
            return velocity

        run: Run | None = call if self.device == "cpu" else None

        @torch.inference_mode()
        def denoise(latents: Tensor, time: int) -> Tensor:
            nonlocal run
            try:
                with self._here():
                    static[0].copy_(latents)
                    static[1].fill_(time)
                    run = run or _captured(call)
                    return run().cpu()
            except RuntimeError as error:
                raise Unsupported(f"torch failed at time {time}: {_reason(error, call)}") from None

        return denoise

    def _here(self) -> AbstractContextManager[object]:
        """Make this package's GPU the current one of this thread."""
        return nullcontext() if self.device == "cpu" else torch.cuda.device(self._index)

    def describe(self) -> dict[str, str]:
        cpu = f"cpu, {torch.get_num_threads()} threads"
        where = cpu if self.device == "cpu" else torch.cuda.get_device_name(self._index)
        return {"backend": "torch", "device": where, "torch": torch.__version__}


def _captured(call: Run) -> Run:
    """A call as one CUDA graph over the same buffers, replayed; its result is overwritten.

    Other threads may use the GPU meanwhile: a capture forbids its own thread alone. What the
    warm-up held is given back first, for a graph has a pool of its own.
    """
    with _CAPTURING:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            velocity = call()

    def replay() -> Tensor:
        graph.replay()
        return velocity

    return replay


def _reason(error: Exception, call: Run | None = None) -> str:
    """Return why a package failed, in a line.

    A call's own error names a function of the package; what went wrong in it is written to stderr
    by compiled code. So the call is made again, and stderr read.
    """
    line = next(iter(str(error).splitlines()), type(error).__name__)
    if call is None or "API call failed" not in str(error):
        return line
    found = _SAID.search(_stderr_of(call))
    return found.group(1) if found else line


def _stderr_of(call: Run) -> str:
    """Return what a call that fails writes to stderr, from Python or from compiled code."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            call()
        except RuntimeError:
            pass
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read().decode(errors="replace")

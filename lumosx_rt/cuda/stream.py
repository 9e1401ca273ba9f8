"""Streams of a GPU, and graphs captured of them, by the driver."""

from collections.abc import Callable
from typing import Any

from lumosx_rt.cuda.device import current
from lumosx_rt.cuda.driver import bindings, call


class Stream:
    """An order of work on a GPU, apart from every other stream's.

    handle: the driver's pointer, as TensorRT and torch (`torch.cuda.ExternalStream`) take it.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self._raw: Any = None
        # one that does not wait for the legacy stream, on which others may work
        flags = bindings().CUstream_flags.CU_STREAM_NON_BLOCKING
        with current(index):
            self._raw = call("cuStreamCreate", flags)
        self.handle = int(self._raw)

    def wait_for(self, other: int) -> None:
        """Let what comes next wait for all that is in another stream now, given by its handle."""
        with current(self.index):
            event = call("cuEventCreate", bindings().CUevent_flags.CU_EVENT_DISABLE_TIMING)
            try:
                call("cuEventRecord", event, other)
                call("cuStreamWaitEvent", self._raw, event, 0)
            finally:
                call("cuEventDestroy", event)  # once it has happened

    def synchronize(self) -> None:
        """Wait until all that was put into it is done."""
        with current(self.index):
            call("cuStreamSynchronize", self._raw)

    def captured(self, work: Callable[[], None]) -> "Graph":
        """Record what a function puts into this stream, without running it.

        Other threads may use the GPU meanwhile. What `work` raises is raised, the capture dropped.
        """
        mode = bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with current(self.index):
            call("cuStreamBeginCapture", self._raw, mode)
            try:
                work()
            except BaseException:
                bindings().cuStreamEndCapture(self._raw)
                raise
            recorded = call("cuStreamEndCapture", self._raw)
            try:
                return Graph(call("cuGraphInstantiate", recorded, 0), self.index)
            finally:
                call("cuGraphDestroy", recorded)

    def launch(self, graph: "Graph") -> None:
        """Put a graph into the stream."""
        with current(self.index):
            call("cuGraphLaunch", graph.raw, self._raw)

    def __del__(self) -> None:
        if self._raw is not None:
            with current(self.index):
                call("cuStreamDestroy", self._raw)  # what is in it is still done


class Graph:
    """Work that was captured of a stream, launched as often as one likes."""

    def __init__(self, raw: Any, index: int) -> None:
        self.raw, self._index = raw, index

    def __del__(self) -> None:
        with current(self._index):
            call("cuGraphExecDestroy", self.raw)

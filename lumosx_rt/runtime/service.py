"""Many requests on one engine: queued, batched, overlapping, each on its own when it fails.

    submit -> [prepare: texts, pictures] -> [denoise: equal shapes together] -> [decode] -> future

Three threads, a bounded queue before each: where videos leave more slowly than requests come,
`submit` waits. A request that is refused, not finite, flat or cancelled ends alone. Under a memory
limit the three take turns, because the limit is planned for one of them at a time.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Lock, Semaphore, Thread
from types import TracebackType
from typing import Protocol, Unpack

from torch import Tensor

from lumosx_rt.reference.errors import LumosXError, NotFinite
from lumosx_rt.reference.sampling.memory_plan import MemoryPlan
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.solvers import SamplerState
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.runtime.guards import Health
from lumosx_rt.runtime.settings import Settings
from lumosx_rt.runtime.video import Video

DECODING = 2  # requests that may wait for the decoder: latents are small, and it should not idle


class Serves(Protocol):
    """What a service needs of an engine."""

    max_memory: int | None
    health: Health

    def prepare(self, scene: Scene | str | Path, **settings: Unpack[Settings]) -> Request: ...

    def max_batch(self, request: Request, most: int) -> tuple[int, MemoryPlan | None]: ...

    def sample_together(
        self, requests: Sequence[Request], plan: MemoryPlan | None = None
    ) -> Iterator[list[SamplerState | NotFinite]]: ...

    def decode(self, request: Request, latents: Tensor) -> list[Video]: ...


@dataclass(eq=False)
class QueuedRequest:
    """A request on its way through the three threads."""

    scene: Scene | str | Path
    settings: Settings
    future: "Future[list[Video]]" = field(default_factory=Future)
    request: Request | None = None
    latents: Tensor | None = None


class Service:
    """Takes requests and returns futures of their videos. Use it in a `with`, or `close` it.

    together: most requests in one call of the backend (the engine's limits and its `max_memory` may
    allow fewer). waiting: requests that may wait to be prepared before `submit` blocks.
    gather_seconds: how long a batch that is not full waits for one more.

    A seed gives the same video whatever it is batched with, but for the rounding of another order
    of sums (`tests/lumosx_rt/runtime/test_service.py` has the bound).
    """

    def __init__(
        self,
        engine: Serves,
        *,
        together: int = 4,
        waiting: int = 16,
        gather_seconds: float = 0.05,
    ) -> None:
        for name, value in (("together", together), ("waiting", waiting)):
            if value < 1:
                raise LumosXError(f"service: {name} must be at least 1, got {value}")
        self.engine, self.together, self.gather_seconds = engine, together, gather_seconds
        self._room, self._lock = Semaphore(waiting), Lock()
        self._turn: AbstractContextManager[object] = (
            nullcontext() if engine.max_memory is None else Lock()
        )
        self._closed = self._dropping = False
        self._asked: Queue[QueuedRequest | None] = Queue()
        self._ready: Queue[QueuedRequest | None] = Queue(together)
        self._sampled: Queue[QueuedRequest | None] = Queue(DECODING)
        self._apart: deque[QueuedRequest] = deque()  # taken out of the queue, of another shape
        self._threads = [
            Thread(target=work, name=f"lumosx-{work.__name__[1:]}", daemon=True)
            for work in (self._prepare, self._denoise, self._decode)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        scene: Scene | str | Path,
        *,
        timeout: float | None = None,
        **settings: Unpack[Settings],
    ) -> "Future[list[Video]]":
        """Ask for a scene's videos; settings as in `Engine.generate`.

        timeout: seconds to wait for room, endless by default. The future raises what `generate`
        would; `cancel` works until its videos are there. Raises LumosXError where there is no room
        in time, or the service was closed.
        """
        job = QueuedRequest(scene, settings)
        if not self._room.acquire(timeout=timeout):
            raise LumosXError(f"service: no room for another request within {timeout} s; ask later")
        with self._lock:
            if self._closed:
                self._room.release()
                raise LumosXError("service: it was closed, and takes no more requests")
            self._asked.put(job)
        return job.future

    def close(self, cancel: bool = False) -> None:
        """Finish what was asked for, or `cancel` it, and end the threads."""
        with self._lock:
            self._dropping |= cancel
            if not self._closed:
                self._closed = True
                self._asked.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Service":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close(cancel=error is not None)

    # -- the three threads ----------------------------------------------------------------------

    def _prepare(self) -> None:
        while (job := self._asked.get()) is not None:
            self._room.release()
            if self._dropped(job):
                continue
            try:
                with self._turn:
                    job.request = self.engine.prepare(job.scene, **job.settings)
            except Exception as error:
                self._failed(job, error)
                continue
            self._ready.put(job)
        self._ready.put(None)

    def _denoise(self) -> None:
        while (first := self._apart.popleft() if self._apart else self._ready.get()) is not None:
            try:
                assert first.request is not None
                most, plan = self.engine.max_batch(first.request, self.together)
            except Exception as error:
                self._failed(first, error)
                continue
            self._run(self._gathered(first, most), plan)
        self._sampled.put(None)

    def _decode(self) -> None:
        while (job := self._sampled.get()) is not None:
            if self._dropped(job):
                continue
            assert job.request is not None and job.latents is not None
            try:
                with self._turn:
                    videos = self.engine.decode(job.request, job.latents)
            except Exception as error:
                self._failed(job, error)
                continue
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(videos)

    # -- batches --------------------------------------------------------------------------------

    def _gathered(self, first: QueuedRequest, most: int) -> list[QueuedRequest]:
        """A request and those that can go with it."""
        assert first.request is not None
        key, jobs = first.request.batch_key, [first]
        for job in list(self._apart):
            if len(jobs) < most and job.request and job.request.batch_key == key:
                self._apart.remove(job)
                jobs.append(job)
        until = time.monotonic() + self.gather_seconds
        while len(jobs) < most and len(self._apart) < self.together:
            try:
                another = self._ready.get(timeout=max(until - time.monotonic(), 0))
            except Empty:
                break
            if another is None:
                self._ready.put(None)  # for the next time
                break
            assert another.request is not None
            (jobs if another.request.batch_key == key else self._apart).append(another)
        return jobs

    def _run(self, jobs: list[QueuedRequest], plan: MemoryPlan | None = None) -> None:
        jobs = [job for job in jobs if not self._dropped(job)]
        if not jobs:
            return
        requests = [job.request for job in jobs if job.request is not None]
        running = dict(enumerate(jobs))
        try:
            with self._turn:
                for states in self.engine.sample_together(requests, plan):
                    self._look_after(running, states)
                    if not running:
                        return
        except Exception as error:  # of the call, so of all of them: each alone then
            if len(jobs) > 1:
                for job in running.values():
                    self._run([job])
            else:
                self.engine.health.ended(error)
                self._failed(jobs[0], error)
            return
        for i, job in running.items():
            state = states[i]
            assert isinstance(state, SamplerState)
            job.latents = state.latents
            self._sampled.put(job)

    def _look_after(
        self, running: dict[int, QueuedRequest], states: list[SamplerState | NotFinite]
    ) -> None:
        """Take out of `running` what failed or was cancelled."""
        for i, job in list(running.items()):
            state = states[i]
            if isinstance(state, NotFinite):
                self._failed(job, state)
            elif not self._dropped(job):
                continue
            del running[i]

    def _dropped(self, job: QueuedRequest) -> bool:
        """Tell whether a request is to end now, because its future or the service was cancelled."""
        if not (job.future.cancelled() or (self._dropping and job.future.cancel())):
            return False
        job.future.set_running_or_notify_cancel()
        self.engine.health.count("cancelled")
        return True

    def _failed(self, job: QueuedRequest, error: Exception) -> None:
        if job.future.set_running_or_notify_cancel():
            job.future.set_exception(error)

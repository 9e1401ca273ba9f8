"""Many requests on one engine: queued, batched, overlapping, each on its own when it fails.

    submit -> [prepare: texts, pictures] -> [denoise: equal shapes together] -> [decode] -> future

Three threads, a bounded line before each: where videos leave more slowly than requests come,
`submit` waits. A request that is refused, not finite, flat or cancelled ends alone. Under a memory
limit the three take turns, because the limit is planned for one of them at a time.

A future is resolved in a thread of its own, because callbacks run where that is done: one that
waits, for room or for another video, holds nobody up.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import TIMEOUT_MAX, Condition, Lock, Thread, current_thread
from types import TracebackType
from typing import Generic, Protocol, TypeVar, Unpack

from torch import Tensor

from lumosx_rt.reference.errors import LumosXError, NotFinite
from lumosx_rt.reference.numbers import real_number, whole_number
from lumosx_rt.reference.process import check_process
from lumosx_rt.reference.sampling.memory_plan import MemoryPlan
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.solvers import SamplerState
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.runtime.guards import Health
from lumosx_rt.runtime.settings import Settings
from lumosx_rt.runtime.video import Video

log = logging.getLogger("lumosx_rt")
Item = TypeVar("Item")

DECODING = 2  # requests that may wait for the decoder: latents are small, and it should not idle
MOST, LONGEST_GATHERING_SECONDS = 1024, 60


class Serves(Protocol):
    """What a service needs of an engine."""

    max_memory: int | None
    max_device_memory: int | None
    health: Health

    def prepare(self, scene: Scene | str | Path, **settings: Unpack[Settings]) -> Request: ...

    def max_batch(self, request: Request, most: int) -> tuple[int, MemoryPlan | None]: ...

    def sample_together(
        self, requests: Sequence[Request], plan: MemoryPlan | None = None
    ) -> Iterator[list[SamplerState | NotFinite]]: ...

    def decode(self, request: Request, latents: Tensor) -> list[Video]: ...


class Ended(Exception):
    """A line takes nothing more, or nothing more comes out of it."""


class Line(Generic[Item]):
    """A bounded queue that anybody may end, while others wait at either side of it."""

    def __init__(self, room: int) -> None:
        self._room, self._ended = room, False
        self._items: deque[Item] = deque()
        self._changed = Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item, timeout: float | None = None) -> bool:
        """Wait for room; False where there is none in time. Raises Ended."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: self._ended or len(self._items) < self._room, timeout
            )
            if self._ended:
                raise Ended
            if found:
                self._items.append(item)
                self._changed.notify_all()
            return found

    def get(self, timeout: float | None = None) -> Item | None:
        """Wait for an item; None where there is none in time. Raises Ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended, timeout)
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if self._ended:
                raise Ended
            return None

    def end(self, drop: bool = False) -> None:
        """Take nothing more; what is in it still comes out, unless it is to `drop`."""
        with self._changed:
            self._ended = True
            if drop:
                self._items.clear()
            self._changed.notify_all()


class VideosFuture(Future["list[Video]"]):
    """A request's videos. In a fork, where nobody makes them, it is not waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def result(self, timeout: float | None = None) -> "list[Video]":
        """Return the videos, or raise what `generate` would."""
        check_process(self._pid, "service: this request")
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `generate` would raise; None if it made the videos."""
        check_process(self._pid, "service: this request")
        return super().exception(timeout)


@dataclass(eq=False)
class QueuedRequest:
    """A request on its way through the three threads."""

    scene: Scene | str | Path
    settings: Settings
    future: "VideosFuture" = field(default_factory=VideosFuture)
    request: Request | None = None
    latents: Tensor | None = None
    thread: Thread | None = None
    """That resolves the future, once it is known how."""


class Service:
    """Takes requests and returns futures of their videos. Use it in a `with`, or `close` it.

    together: most requests in one call of the backend (the engine's limits and its `max_memory` may
    allow fewer). waiting: requests that may wait to be prepared before `submit` blocks.
    gather_seconds: how long a batch that is not full waits for one more, at most 60.

    A callback of a future may submit, cancel and close. A forked process needs its own engine.
    If one of the threads ends by an error that is no request's, every future that is not done has
    it, and `submit` refuses.

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
        self.engine = engine
        self.together = whole_number(together, "service: together", 1, MOST)
        waiting = whole_number(waiting, "service: waiting", 1, MOST)
        self.gather_seconds = real_number(
            gather_seconds, "service: gather_seconds", 0, LONGEST_GATHERING_SECONDS
        )
        self._turn: AbstractContextManager[object] = (
            nullcontext() if engine.max_memory is engine.max_device_memory is None else Lock()
        )
        self._pid, self._closed, self._dropping = os.getpid(), False, False
        self._broken: LumosXError | None = None
        self._pending: set[QueuedRequest] = set()  # until their callbacks have run
        self._changed = Condition()  # of the four above
        self._asked: Line[QueuedRequest] = Line(waiting)
        self._ready: Line[QueuedRequest] = Line(self.together)
        self._sampled: Line[QueuedRequest] = Line(DECODING)
        self._apart: deque[QueuedRequest] = deque()  # taken out of the line, of another shape
        self._threads = [
            Thread(target=self._work, args=[work], name=f"lumosx-{work.__name__[1:]}", daemon=True)
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
        in time, the service was closed or is broken, or belongs to another process.
        """
        check_process(self._pid, "service: its engine")
        if timeout is not None:
            timeout = real_number(timeout, "service: timeout", 0, TIMEOUT_MAX)
        job = QueuedRequest(scene, settings)
        with self._changed:
            self._check_open()
            self._pending.add(job)
        try:
            if self._asked.put(job, timeout):
                return job.future
        except Ended:
            self._forget(job)
            with self._changed:
                self._check_open()
        except BaseException:  # Ctrl-C while it waits
            self._forget(job)
            raise
        self._forget(job)
        raise LumosXError(f"service: no room for another request within {timeout} s; ask later")

    def close(self, cancel: bool = False) -> None:
        """Finish what was asked for, or `cancel` it, and end the threads.

        Returns when all futures are done and their callbacks have run; called from a callback, it
        does not wait for callbacks.
        """
        if os.getpid() != self._pid:  # the threads are the other process's
            return
        with self._changed:
            self._closed = True
            self._dropping |= cancel
        self._asked.end()
        here = current_thread()
        if here in self._threads:
            return
        for thread in self._threads:
            thread.join()
        with self._changed:
            waiting = list(self._pending)
            if here not in [job.thread for job in waiting]:
                self._changed.wait_for(lambda: not self._pending)
                return
        for job in waiting:
            with suppress(CancelledError):
                job.future.exception()

    def _check_open(self) -> None:
        if self._broken is not None:
            raise LumosXError(str(self._broken))
        if self._closed:
            raise LumosXError("service: it was closed, and takes no more requests")

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

    def _work(self, work: Callable[[], None]) -> None:
        """Run one of the three; whatever ends it but its own end is everybody's error."""
        try:
            with suppress(Ended):
                work()
        except BaseException as error:
            self._break(current_thread().name, error)

    def _break(self, thread: str, error: BaseException) -> None:
        reason = f"service: its thread {thread} ended ({type(error).__name__}: {error})"
        broken = LumosXError(f"{reason}; make another with `engine.serve()`")
        broken.__cause__ = error
        log.error("%s", broken)
        with self._changed:
            self._closed, self._dropping, self._broken = True, True, broken
            pending = list(self._pending)
        for line in (self._asked, self._ready, self._sampled):
            line.end(drop=True)
        for job in pending:
            self._answer(job, broken)

    def _prepare(self) -> None:
        try:
            while job := self._asked.get():
                if self._dropped(job):
                    continue
                try:
                    with self._turn:
                        job.request = self.engine.prepare(job.scene, **job.settings)
                except Exception as error:
                    self._answer(job, error)
                    continue
                self._ready.put(job)
        except Ended:
            self._ready.end()

    def _denoise(self) -> None:
        try:
            while first := self._apart.popleft() if self._apart else self._ready.get():
                try:
                    assert first.request is not None
                    most, plan = self.engine.max_batch(first.request, self.together)
                except Exception as error:
                    self._answer(first, error)
                    continue
                self._run(self._gathered(first, most), plan)
        except Ended:
            self._sampled.end()

    def _decode(self) -> None:
        while job := self._sampled.get():
            if self._dropped(job):
                continue
            assert job.request is not None and job.latents is not None
            try:
                with self._turn:
                    videos = self.engine.decode(job.request, job.latents)
            except Exception as error:
                self._answer(job, error)
                continue
            self._answer(job, videos)

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
            except Ended:
                break
            if another is None:
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
                self._answer(jobs[0], error)
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
                self._answer(job, state)
            elif not self._dropped(job):
                continue
            del running[i]

    # -- answers --------------------------------------------------------------------------------

    def _dropped(self, job: QueuedRequest) -> bool:
        """Tell whether a request is to end now, because its future or the service was cancelled."""
        if not (self._dropping or job.future.cancelled()):
            return False
        if self._answer(job, CancelledError()):
            self.engine.health.count("cancelled")
        return True

    def _answer(self, job: QueuedRequest, answer: list[Video] | BaseException) -> bool:
        """Resolve a future, in a thread of its own. False where another does so already."""

        def resolve() -> None:
            try:
                if isinstance(answer, CancelledError):
                    job.future.cancel()
                if not job.future.set_running_or_notify_cancel():
                    return
                if isinstance(answer, BaseException):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)
            finally:
                self._forget(job)

        with self._changed:
            if job.thread is not None:
                return False
            job.thread = Thread(target=resolve, name="lumosx-answer", daemon=True)
        try:
            job.thread.start()
        except RuntimeError:  # the system has no more threads to give
            resolve()
        return True

    def _forget(self, job: QueuedRequest) -> None:
        with self._changed:
            self._pending.discard(job)
            self._changed.notify_all()

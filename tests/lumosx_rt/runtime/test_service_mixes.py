"""A service never hangs, whatever mix of submit, cancel, callbacks, close and deaths it meets."""

import faulthandler
import math
import random
import sys
import threading
import time
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.reference.sampling.solvers import SamplerState
from lumosx_rt.runtime.guards import Health
from lumosx_rt.runtime.service import Service
from tests.helpers.forked import in_a_fork

PATIENCE = 20
LATENTS = torch.zeros(1, 1, 1, 2, 2)
STATE = SamplerState(1, 1, 0.0, LATENTS, LATENTS)


class FakeEngine:
    """An engine whose requests take no time. `broken`: stage -> the error that it raises.

    A scene is (shape, whether it is refused).
    """

    max_memory = max_device_memory = None

    def __init__(self, **broken: BaseException) -> None:
        self.health, self.broken = Health(), broken

    def at(self, stage: str) -> None:
        if stage in self.broken:
            raise self.broken[stage]

    def prepare(self, scene, **settings):
        self.at("prepare")
        shape, refused = scene
        if refused:
            raise rt.LumosXError("refused")
        return SimpleNamespace(batch_key=shape)

    def max_batch(self, request, most):
        self.at("max_batch")
        return most, None

    def sample_together(self, requests, plan=None):
        for _ in range(2):
            self.at("sample_together")
            yield [STATE] * len(requests)

    def decode(self, request, latents):
        self.at("decode")
        return [request.batch_key]


@pytest.fixture
def watched(capsys):
    """`watched(function)`: run it in a thread; one that does not end fails, with all stacks."""

    def run(function):
        failed = []

        def noting():
            try:
                function()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=noting, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if thread.is_alive():
            with capsys.disabled():
                faulthandler.dump_traceback(sys.stderr)
            pytest.fail("it hangs")
        if failed:
            raise failed[0]

    return run


def ended() -> bool:
    """All threads of all services; the last thing that one does is to say so."""
    for thread in threading.enumerate():
        if thread.name.startswith("lumosx-"):
            thread.join(PATIENCE)
    return not [t for t in threading.enumerate() if t.name.startswith("lumosx-")]


# -- callbacks ----------------------------------------------------------------------------------


def test_callbacks_that_ask_for_more_while_others_fill_the_queue(watched):
    done, enough = [], threading.Event()

    def again(future):
        done.append(future)
        if len(done) >= 200:
            enough.set()
        else:
            service.submit((0, False)).add_done_callback(again)

    def flood():
        for _ in range(40):
            service.submit((0, False)).add_done_callback(again)

    service = Service(FakeEngine(), together=2, waiting=1, gather_seconds=0)
    with service:
        threads = [threading.Thread(target=flood) for _ in range(2)]
        [thread.start() for thread in threads]
        watched(lambda: [thread.join() for thread in threads] and enough.wait())
    assert len(done) >= 200 and ended()


def test_callbacks_that_never_stop_asking_end_with_the_service(watched):
    refused = []

    def again(future):
        try:
            service.submit((0, False)).add_done_callback(again)
        except rt.LumosXError as error:
            refused.append(str(error))

    service = Service(FakeEngine(), waiting=1, gather_seconds=0)
    for _ in range(8):
        service.submit((0, False)).add_done_callback(again)
    watched(service.close)
    assert len(refused) == 8 and all("closed" in reason for reason in refused) and ended()


@pytest.mark.parametrize("cancel", [False, True])
def test_a_callback_may_close_and_wait_for_other_videos(watched, cancel):
    closed = threading.Event()

    def close(future):
        service.close(cancel)
        closed.set()

    def waiting(future):
        with suppress(CancelledError):
            last.result()

    service = Service(FakeEngine(), together=1, gather_seconds=0)
    for callback in (waiting, close, close, waiting):
        service.submit((0, False)).add_done_callback(callback)
    with suppress(rt.LumosXError):  # where a callback was there first
        last = service.submit((1, False))
    watched(closed.wait)
    watched(service.close)
    assert ended()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_stops_nothing():
    def raising(future):
        raise SystemExit(3)  # which threads end by without a word

    with Service(FakeEngine()) as service:
        service.submit((0, False)).add_done_callback(raising)
        assert service.submit((0, False)).result(PATIENCE) == [0]
    assert ended()


# -- any mix ------------------------------------------------------------------------------------


class Crowded(FakeEngine):
    """Counts how many of its stages are under way at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.most = 0

    def at(self, stage: str) -> None:
        if stage == "max_batch":  # a formula, no work
            return
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.01)
        self.inside -= 1


@pytest.mark.parametrize("limit", ["max_memory", "max_device_memory", None])
def test_stages_take_turns_where_memory_is_limited(limit):
    """A plan is of one stage at a time, in either memory; without one they overlap."""
    engine = Crowded()
    if limit:
        setattr(engine, limit, 1)
    with Service(engine, together=1, gather_seconds=0.0) as service:
        futures = [service.submit((0, False)) for _ in range(12)]
        for future in futures:
            future.result(timeout=30)
    assert (engine.most == 1) == (limit is not None)


@pytest.mark.parametrize("seed", range(12))
def test_any_mix_ends(watched, seed):
    draw = random.Random(seed)
    dies = draw.choice([None, None, "prepare", "max_batch", "sample_together", "decode"])
    engine = FakeEngine()
    engine.max_memory = draw.choice([None, 1])
    service = Service(
        engine, together=draw.randint(1, 4), waiting=draw.randint(1, 4), gather_seconds=0.001
    )
    futures = []

    def act(draw, depth=0):
        kind = draw.random()
        with suppress(rt.LumosXError):
            if kind < 0.7:
                scene = (draw.randrange(3), draw.random() < 0.1)
                future = service.submit(scene, timeout=draw.choice([None, 0, 0.01]))
                futures.append(future)
                if draw.random() < 0.5 and depth < 4:
                    future.add_done_callback(lambda _: act(draw, depth + 1))
            elif kind < 0.95 and futures:
                draw.choice(futures).cancel()
            elif kind > 0.995:
                service.close(cancel=draw.random() < 0.5)

    def work(number):
        own = random.Random(f"{seed} {number}")
        for i in range(40):
            act(own)
            if dies and number == 0 and i == 20:
                engine.broken[dies] = KeyboardInterrupt()

    threads = [threading.Thread(target=work, args=[i], daemon=True) for i in range(4)]
    [thread.start() for thread in threads]
    watched(lambda: [thread.join() for thread in threads])
    watched(lambda: service.close(cancel=draw.random() < 0.5))
    assert all(future.done() for future in futures) and ended()
    with pytest.raises(rt.LumosXError):
        service.submit((0, False))


# -- deaths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("stage", ["prepare", "max_batch", "sample_together", "decode"])
def test_a_thread_that_dies_fails_everything_that_waits(watched, stage, error, caplog):
    engine, gate = FakeEngine(**{stage: error}), threading.Event()
    right = engine.at
    engine.at = lambda name: (name != stage or gate.wait(PATIENCE)) and right(name)
    service = Service(engine, together=1, waiting=8)
    futures = [service.submit((i, False)) for i in range(8)]
    full = []

    def one_more():
        with pytest.raises(rt.LumosXError) as refused:
            while True:
                futures.append(service.submit((0, False)))
        full.append(str(refused.value))

    thread = threading.Thread(target=one_more, daemon=True)
    thread.start()
    gate.set()
    watched(lambda: wait(list(futures)))
    watched(thread.join)
    for future in futures:
        told = future.exception(PATIENCE)
        assert isinstance(told, rt.LumosXError) and type(error).__name__ in str(told)
    assert type(error).__name__ in full[0] and type(error).__name__ in caplog.text
    watched(service.close)
    assert ended()


def test_an_ordinary_error_is_one_requests_own(watched):
    engine = FakeEngine(decode=MemoryError("none left"))
    with Service(engine, together=1) as service:
        assert isinstance(service.submit((0, False)).exception(PATIENCE), MemoryError)
        del engine.broken["decode"]
        assert service.submit((0, False)).result(PATIENCE) == [0]


# -- arguments ----------------------------------------------------------------------------------

NO_COUNTS = [0, -1, 1025, 10**30, 1.5, math.nan, None, "4", "x", True, [2]]
NO_SECONDS = [-1, math.nan, math.inf, "1", "x", [1], {}]


@pytest.mark.parametrize("name", ["together", "waiting"])
def test_counts_are_checked(name):
    for value in NO_COUNTS:
        with pytest.raises(rt.LumosXError, match=name):
            Service(FakeEngine(), **{name: value})
    for value in (np.int32(3), torch.tensor(2), 1024):
        Service(FakeEngine(), **{name: value}).close()
    assert ended()


def test_times_are_checked():
    for value in [*NO_SECONDS, None, 61]:
        with pytest.raises(rt.LumosXError, match="gather_seconds"):
            Service(FakeEngine(), gather_seconds=value)
    with Service(FakeEngine(), gather_seconds=np.float32(0.01)) as service:
        for value in NO_SECONDS:
            with pytest.raises(rt.LumosXError, match="timeout"):
                service.submit((0, False), timeout=value)
        assert service.submit((0, False), timeout=np.int64(9)).result(PATIENCE) == [0]
    assert ended()


# -- forks --------------------------------------------------------------------------------------


def test_a_service_is_refused_in_a_fork_and_can_be_left_there():
    with Service(FakeEngine()) as service:
        service.submit((0, False)).result(PATIENCE)
        told = in_a_fork(lambda: service.submit((0, False)))
        assert told.startswith("Unsupported: service") and "load it again here" in told
        assert in_a_fork(lambda: service.close(cancel=True)) == "None"
        future = service.submit((0, False))
        for wait in (future.result, future.exception):
            assert in_a_fork(wait).startswith("Unsupported: service: this request")
        with service._changed, service._asked._changed:  # as another thread may hold them just then
            assert in_a_fork(lambda: service.submit((0, False))).startswith("Unsupported")
            assert in_a_fork(service.close) == "None"
        assert service.submit((0, False)).result(PATIENCE) == [0]

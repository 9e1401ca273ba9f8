"""A service makes of every request what the engine alone would, whoever else asks and fails."""

import math
import threading
import time
from concurrent.futures import CancelledError, wait
from dataclasses import replace

import numpy as np
import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.reference.errors import Flat, NotFinite
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime.service import Service

NONE, ONE, TWO = builtin_scenes()
SIZE = rt.VideoSize(5, 32, 48)
OPTIONS = {"size": SIZE, "steps": 3, "guidance": 3.0}
TOGETHER = 1e-5  # relative error of final latents, batched against alone
PATIENCE = 20


def scenes(count: int) -> list[rt.Scene]:
    """Of one shape, all different."""
    return [replace(ONE, name=f"s{i}", caption=f"{i}. {ONE.caption}") for i in range(count)]


@pytest.fixture
def engine(micro_engine):
    """The micro engine with counts of its own."""
    engine = rt.Engine(micro_engine.folder, micro_engine.manifest, micro_engine.backend)
    engine.__dict__["text_encoder"] = micro_engine.text_encoder
    engine.__dict__["vae"] = micro_engine.vae
    return engine


@pytest.fixture
def batches(engine, monkeypatch):
    """The names that went through the backend together, call by call."""
    right, seen = engine.sample_together, []

    def sample_together(requests, plan=None, **options):
        seen.append([request.name for request in requests])
        yield from right(requests, plan, **options)

    monkeypatch.setattr(engine, "sample_together", sample_together)
    return seen


@pytest.fixture
def held(engine, monkeypatch):
    """Hold the denoising thread back until it is set."""
    gate, right = threading.Event(), engine.max_batch

    def max_batch(request, most):
        assert gate.wait(PATIENCE)
        return right(request, most)

    monkeypatch.setattr(engine, "max_batch", max_batch)
    return gate


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def level_error(frames, expected) -> int:
    return int(np.abs(frames.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_requests_together_are_what_they_are_alone(drawn_engine, guidance):
    others = [
        replace(ONE, subjects=(), objects=ONE.references),  # the same number, in other groups
        replace(ONE, caption="The other woman, in a red hat and a blue coat."),
    ]
    options = OPTIONS | {"guidance": guidance}
    seeds = ([7, 8], [7, 9], [0, 7])
    requests = [
        drawn_engine.prepare(scene, **options | {"seeds": s})
        for scene, s in zip([ONE, *others], seeds, strict=True)
    ]
    assert len({request.batch_key for request in requests}) == 1
    *_, together = drawn_engine.sample_together(requests)
    finals = []
    for request, state in zip(requests, together, strict=True):
        *_, alone = drawn_engine.sample(request)
        finals.append(alone.latents)
        assert relative_error(state.latents, alone.latents) <= TOGETHER
        assert relative_error(state.clean, alone.clean) <= TOGETHER
    assert relative_error(finals[0][0], finals[1][0]) > 10 * TOGETHER  # the scene matters


def test_what_cannot_go_together_has_another_key(drawn_engine):
    base = drawn_engine.prepare(ONE, **OPTIONS)
    for scene, changed in (
        (TWO, {}), (ONE, {"steps": 4}), (ONE, {"guidance": 2.0}), (ONE, {"shift": 2.0}),
        (ONE, {"seeds": [1, 2]}), (ONE, {"size": rt.VideoSize(5, 32, 40)}),
        (ONE, {"size": rt.VideoSize(9, 32, 48)}),
    ):  # fmt: skip
        assert drawn_engine.prepare(scene, **OPTIONS | changed).batch_key != base.batch_key
    same = drawn_engine.prepare(ONE, **OPTIONS | {"seeds": [5], "negative_prompt": "rain"})
    assert same.batch_key == base.batch_key


def test_a_service_batches_equal_shapes_and_gives_everyone_their_video(engine, batches, held):
    asked = [*scenes(3), NONE, scenes(4)[3]]
    with engine.serve(together=3, waiting=5) as service:
        futures = [service.submit(scene, **OPTIONS, seeds=[i]) for i, scene in enumerate(asked)]
        until(lambda: len(service._ready) == 3)
        held.set()
        videos = [future.result(PATIENCE) for future in futures]
    assert batches[0] == ["s0", "s1", "s2"] and sorted(sum(batches, [])) == sorted(
        scene.name for scene in asked
    )
    for i, (scene, (video,)) in enumerate(zip(asked, videos, strict=True)):
        (alone,) = engine.generate(scene, **OPTIONS, seeds=[i])
        assert (video.name, video.seed) == (scene.name, i)
        assert level_error(video.frames, alone.frames) <= 1
    assert level_error(videos[0][0].frames, videos[1][0].frames) > 1
    assert engine.health.videos == 10 and engine.health.failed == 0


def test_one_bad_request_fails_alone(engine, batches, held, fault, monkeypatch):
    bad_stream = 1

    def spoiled(velocity, call):
        if len(velocity) == 6:  # the batch of three, two branches each
            velocity[bad_stream, 0, 0, 0, 0, 0] = math.nan
        return velocity

    fault(velocity=spoiled)
    flat = engine.vae.decode_frames_uint8
    grey = lambda latents, *tile: flat(latents, *tile) * 0 + 90  # noqa: E731
    good, nan, plain = scenes(3)
    wrong = replace(ONE, name="wrong", caption="nobody")
    with engine.serve(together=3, gather_seconds=1.0) as service:
        futures = [service.submit(scene, **OPTIONS) for scene in (good, wrong, nan, plain)]
        until(lambda: len(service._ready) == 2)
        right = engine.decode

        def decode(request, latents):
            with monkeypatch.context() as patch:
                if request.name == plain.name:
                    patch.setattr(engine.vae, "decode_frames_uint8", grey)
                return right(request, latents)

        monkeypatch.setattr(engine, "decode", decode)
        held.set()
        errors = [future.exception(PATIENCE) for future in futures]
    assert batches == [["s0", "s1", "s2"]]
    assert errors[0] is None and isinstance(errors[2], NotFinite) and isinstance(errors[3], Flat)
    assert "s1" in str(errors[2]) and "after step 1" in str(errors[2])
    assert isinstance(errors[1], rt.LumosXError) and "nobody" not in good.caption
    (video,) = futures[0].result()
    monkeypatch.undo()
    (alone,) = engine.generate(good, **OPTIONS)
    assert level_error(video.frames, alone.frames) <= 1
    counts = engine.health.as_dict()
    assert (counts["refused"], counts["non_finite"], counts["flat"]) == (1, 1, 1)


def test_a_call_that_fails_as_a_whole_is_tried_for_each_alone(engine, held, monkeypatch):
    right = engine.backend.bind

    def bind(inputs):
        if inputs.shape[0] > 2:
            raise rt.LumosXError("onnxruntime failed: out of memory")
        return right(inputs)

    monkeypatch.setattr(engine, "backend", type("Small", (), {"bind": staticmethod(bind)})())
    with engine.serve(together=2, gather_seconds=1.0) as service:
        futures = [service.submit(scene, **OPTIONS) for scene in scenes(2)]
        until(lambda: len(service._ready) == 1)
        held.set()
        assert [len(future.result(PATIENCE)) for future in futures] == [1, 1]
    monkeypatch.setattr(engine.backend, "bind", lambda inputs: 1 / 0, raising=False)
    with engine.serve() as service:
        assert isinstance(service.submit(ONE, **OPTIONS).exception(PATIENCE), ZeroDivisionError)
    assert engine.health.failed == 1


def test_a_full_queue_holds_back_and_refuses_after_a_while(engine, held):
    with Service(engine, together=1, waiting=2) as service:
        futures = []
        while len(futures) < 20:
            try:
                futures.append(service.submit(NONE, timeout=0.3, **OPTIONS))
            except rt.LumosXError as error:
                assert "no room" in str(error)
                break
        # one being denoised, one ready, one that waits to become ready, two that wait to begin
        assert len(futures) == 5
        blocked = []
        thread = threading.Thread(target=lambda: blocked.append(service.submit(NONE, **OPTIONS)))
        thread.start()
        time.sleep(0.05)
        assert not blocked
        held.set()
        thread.join(PATIENCE)
        done, left = wait([*futures, *blocked], PATIENCE)
        assert len(done) == 6 and not left


def test_cancelled_requests_end_at_once_and_the_others_go_on(engine, fault):
    reached, going = threading.Event(), threading.Event()

    def slow(velocity, call):
        if call == 2:
            reached.set()
            assert going.wait(PATIENCE)
        return velocity

    calls = fault(velocity=slow)
    with engine.serve(together=1) as service:
        long = service.submit(ONE, **OPTIONS | {"steps": 1000})
        waiting = service.submit(TWO, **OPTIONS)
        last = service.submit(NONE, **OPTIONS)
        assert reached.wait(PATIENCE)
        assert long.cancel() and waiting.cancel()  # under way, and not begun
        going.set()
        assert len(last.result(PATIENCE)) == 1
        for future in (long, waiting):
            with pytest.raises(CancelledError):
                future.result(0)
    assert len(calls) == 2 + OPTIONS["steps"]
    assert engine.health.cancelled == 2 and engine.health.videos == 1


def test_closing_finishes_or_drops_and_takes_no_more(engine, fault):
    service = engine.serve()
    futures = [service.submit(scene, **OPTIONS) for scene in scenes(3)]
    service.close()
    assert all(future.done() and future.result() for future in futures)
    with pytest.raises(rt.LumosXError, match="closed"):
        service.submit(ONE)
    service.close()
    calls = fault(velocity=lambda velocity, call: velocity)
    with pytest.raises(KeyboardInterrupt), engine.serve() as service:
        futures = [service.submit(scene, **OPTIONS | {"steps": 1000}) for scene in scenes(3)]
        until(lambda: calls)
        raise KeyboardInterrupt
    assert all(future.cancelled() for future in futures) and len(calls) < 1000
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("lumosx-")])


@pytest.mark.parametrize("options", [{"together": 0}, {"waiting": 0}], ids=str)
def test_a_service_that_could_do_nothing_is_refused(engine, options):
    with pytest.raises(rt.LumosXError, match=next(iter(options))):
        engine.serve(**options)


# -- events -------------------------------------------------------------------------------------


def test_a_stream_shows_every_step_and_ends_with_the_videos(engine):
    *steps, last = engine.stream(TWO, **OPTIONS, seeds=[3, 4])
    assert [(e.step, e.steps) for e in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(e.preview.shape == (2, 32, 48, 3) and e.videos is None for e in steps)
    expected = engine.generate(TWO, **OPTIONS, seeds=[3, 4])
    assert [v.seed for v in last.videos] == [3, 4]
    for i, (video, wanted) in enumerate(zip(last.videos, expected, strict=True)):
        assert (video.frames == wanted.frames).all()
        assert level_error(steps[-1].preview[i], video.frames[0]) <= 1  # nothing is left to change
        assert level_error(steps[0].preview[i], video.frames[0]) > 1
    bare = list(engine.stream(NONE, **OPTIONS, previews=False))
    assert [e.preview for e in bare] == [None] * 4 and len(bare[-1].videos) == 1


def test_a_preview_is_where_the_velocity_points_to(engine):
    request = engine.prepare(TWO, **OPTIONS)
    states = list(engine.sample(request))
    sigmas = [s.sigma for s in states]
    # one step of the solver's first order, from the formula: x' = (s'/s) x + (1 - s'/s) x0
    ratio = sigmas[1] / sigmas[0]
    x0 = (states[1].latents.double() - ratio * states[0].latents.double()) / (1 - ratio)
    assert relative_error(states[1].clean, x0) < 1e-4
    assert torch.equal(states[0].clean, states[0].latents)
    assert relative_error(states[-1].clean, states[-1].latents) < 1e-5

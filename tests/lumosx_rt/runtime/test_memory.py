"""Memory is known beforehand, kept to, and what is done for it does not change the video."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.reference.backbones.config import PRESETS
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime import memory
from lumosx_rt.runtime.devices.remembered import Remembered
from lumosx_rt.runtime.memory import MemoryNeed, parse_bytes

NONE, ONE, TWO = builtin_scenes()
SIZE = rt.VideoSize(5, 32, 48)

OPTIONS = {"size": SIZE, "steps": 3, "guidance": 3.0}
MIB = 1 << 20

PEAK = """
import sys
import torch
import lumosx_rt as rt
from lumosx_rt.parity.verify import builtin_scenes
torch.set_num_threads(1)
engine = rt.load(sys.argv[1], provider="cpu")
options = dict(size=rt.VideoSize(5, 240, 416), steps=1, guidance=3.0)
usual = engine.plan(builtin_scenes()[2], **options)
engine.max_memory = int(0.7 * usual.peak_bytes)
plan = engine.plan(builtin_scenes()[2], **options)
engine.generate(builtin_scenes()[2], **options)
(peak,) = (int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(usual.peak_bytes, plan.peak_bytes, 1024 * peak, int(usual.sequential), int(plan.sequential))
"""


@pytest.fixture(scope="module")
def job():
    layout = SceneLayout.from_key("21x30x52+1+4.4")
    size = rt.VideoSize(81, 480, 832)
    return MemoryNeed(
        config=PRESETS["1.3b"], backend="torch", number_bytes=2, layout=layout, size=size,
        held_bytes=4 << 30, text_encoder_bytes=11 << 30,
    )  # fmt: skip


# -- against the machine ------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_the_peak_is_what_was_planned_and_a_limit_is_kept(drawn):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(drawn.folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    usual, planned, peak, *sequential = map(int, done.stdout.split())
    assert sequential == [0, 1]
    assert planned <= 0.7 * usual
    assert 0.75 < peak / planned < 1.05


# -- refusing and adapting ----------------------------------------------------------------------


def test_what_cannot_fit_is_refused_with_numbers_before_any_work(drawn, fault, run, tmp_path):
    calls = fault()
    engine = rt.load(drawn.folder, provider="cpu", max_memory="100MiB")
    for ask in (engine.generate, engine.plan):
        with pytest.raises(rt.LumosXError) as error:
            ask(TWO, **OPTIONS)
        assert "of 0.10 GiB" in str(error.value) and "--max-memory" in str(error.value)
    assert engine.health.refused == 1 and calls == [] and engine.remembered.misses == 0
    TWO.save(tmp_path / "two")
    command = ["generate", drawn.folder, tmp_path / "two", "-o", tmp_path / "out", "--frames", 5,
               "--height", 32, "--width", 48, "--steps", 1]  # fmt: skip
    assert "memory: needs" in run(*command, "--max-memory", "100MiB", code=1).stderr
    assert "'lots'" in run(*command, "--max-memory", "lots", code=2).stderr
    assert "two-subjects: memory: peak" in run(*command, "--max-memory", "20GB").stderr


def test_a_plan_changes_as_little_as_it_must(job):
    free = memory.plan(job)
    assert (free.sequential, free.tile, free.frees_text_encoder) == (False, None, False)
    assert free.peak_bytes == max(free.phases.values()) > free.held_bytes
    roomy = memory.plan(job, free.peak_bytes)
    assert replace(roomy, limit_bytes=None) == free
    tiled = memory.plan(job, free.decode_bytes - 1)
    assert tiled.tile is not None and not tiled.sequential and not tiled.frees_text_encoder
    assert "tiles" in str(tiled) and tiled.denoise_bytes == free.denoise_bytes
    tight = memory.plan(job, 18 << 30)
    assert tight.frees_text_encoder and tight.peak_bytes <= 18 << 30
    for limit in range(16 << 30, free.peak_bytes, 1 << 30):
        try:
            found = memory.plan(job, limit)
        except rt.LumosXError:
            assert limit < tight.peak_bytes
        else:
            assert found.peak_bytes <= limit
    with pytest.raises(rt.LumosXError, match="needs peak"):
        memory.plan(job, 8 << 30)


def test_a_gpu_is_a_budget_of_its_own(job):
    """What is done on it is in its memory and no longer in this computer's."""
    alone = memory.plan(job)
    gpu = replace(job, on_gpu=True, encoders_on_gpu=True, gpu_held_bytes=3 << 30)
    both = memory.plan(gpu)
    clips = 81 * 480 * 832 * 3
    assert alone.device is None and both.device is not None
    assert set(both.phases.values()) == {job.held_bytes, job.held_bytes + clips}
    for name, there in both.device.phases.items():
        moved = alone.phases[name] - job.held_bytes - (clips if name == "decode" else 0)
        assert there == (3 << 30) + moved, name
    half = memory.plan(replace(gpu, encoders_on_gpu=False))
    assert half.denoise_bytes == half.held_bytes + job.text_encoder_bytes
    assert half.device.text_bytes == half.device.decode_bytes == 3 << 30
    assert half.device.denoise_bytes == (3 << 30) + memory.denoise_bytes(job, 2)


def test_either_budget_is_kept_and_named(job):
    gpu = replace(job, on_gpu=True, encoders_on_gpu=True, gpu_held_bytes=3 << 30)
    free = memory.plan(gpu)
    tight = memory.plan(gpu, free.peak_bytes, free.device.peak_bytes - 1)
    assert tight != free and tight.device.peak_bytes < free.device.peak_bytes
    assert tight.fits and tight.tile or tight.sequential or tight.frees_text_encoder
    assert "on the GPU peak" in str(tight)
    for limits, named, unnamed in (
        ((1 << 30, None), "--max-memory", "--max-device-memory"),
        ((None, 4 << 30), "--max-device-memory", "--max-memory"),
    ):
        with pytest.raises(rt.LumosXError) as error:
            memory.plan(gpu, *limits)
        assert f"allow more with {named}, or" in str(error.value)
        assert f"{unnamed}" not in str(error.value)
    with pytest.raises(rt.LumosXError, match="--max-memory and --max-device-memory"):
        memory.plan(gpu, 1 << 30, 1 << 30)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_needs_grow_with_what_they_are_of(job, backend):
    job = replace(job, backend=backend, number_bytes=4)
    whole = memory.denoise_bytes(job, 2)
    assert memory.denoise_bytes(job, 1) * 2 == whole
    assert memory.denoise_bytes(replace(job, requests=3), 2) == 3 * whole
    assert whole < memory.denoise_bytes(replace(job, seeds=2), 2) < 2 * whole  # pictures are shared
    bigger = replace(job, layout=SceneLayout.from_key("21x30x52+1+4.4.4"))
    assert memory.denoise_bytes(bigger, 2) > whole
    # the table of video attention, of the formula's largest term, by hand
    if backend == "onnxruntime":
        assert whole > 2 * 12 * (21 * 1560) * (30 * 1560) * 4


@pytest.mark.parametrize(
    "text, expected",
    [
        ("8GiB", 8 << 30),
        ("500MB", 500_000_000),
        ("1.5 g", 1_500_000_000),
        ("12ki", 12288),
        ("77b", 77),
        (77, 77),
        (np.int64(77), 77),
    ],
)
def test_bytes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0GB",
        "-3",
        "8",
        "1.5",
        1.5,
        0,
        -1,
        True,
        math.inf,
        None,
        "8 apples",
        "1e9",
        "GiB",
        "nanGB",
        "1e3GB",
        "٨GB",
        "9" * 400 + "GB",
        1 << 80,
        "8G\nB",
    ],
)
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(rt.LumosXError, match="max_memory"):
        parse_bytes(text)


# -- the same video -----------------------------------------------------------------------------


def test_one_branch_after_the_other_is_both_at_once(drawn_engine):
    from lumosx_rt.reference.sampling.denoise import denoise

    request = drawn_engine.prepare(TWO, **OPTIONS, seeds=[1, 2])
    shapes, right = [], drawn_engine.backend.bind

    def bind(inputs):
        shapes.append(inputs.shape[:2])
        return right(inputs)

    spy = type("Spy", (), {"bind": staticmethod(bind)})()
    runs = [
        list(denoise(spy, request, drawn_engine.config.head_dim, sequential=sequential))
        for sequential in (False, True)
    ]
    assert shapes == [(2, 2), (1, 2), (1, 2)]
    for both, apart in zip(*runs, strict=True):
        assert relative_error(apart.latents, both.latents) < 1e-5
    other = drawn_engine.prepare(TWO, **OPTIONS | {"guidance": 1.0}, seeds=[1, 2])
    *_, unguided = drawn_engine.sample(other)
    assert relative_error(unguided.latents, runs[0][-1].latents) > 1e-4  # the null branch matters


def limited(engine, plan):
    """The engine with a limit under which everything is planned like this."""
    copy = rt.Engine(engine.folder, engine.manifest, engine.backend, max_memory=1 << 40)
    copy._plan = lambda asked, requests=1: plan
    return copy


def test_an_engine_with_little_memory_makes_the_same_video(drawn_engine):
    usual = drawn_engine.plan(TWO, **OPTIONS)
    tight = replace(usual, sequential=True, tile=(3, 3), frees_text_encoder=True)
    engine = limited(drawn_engine, tight)
    for scene in (TWO, ONE, TWO):
        (video,) = engine.generate(scene, **OPTIONS)
        (expected,) = drawn_engine.generate(scene, **OPTIONS)
        assert engine.text_encoder.is_free
        error = np.abs(video.frames.astype(int) - expected.frames.astype(int))
        assert error.max() <= 1 and (error > 0).mean() < 0.01
    latents = torch.randn(1, 16, 2, 4, 6)
    whole, tiled = (
        e.decode(e.prepare(TWO, **OPTIONS), latents)[0].frames for e in (drawn_engine, engine)
    )
    assert np.abs(whole.astype(int) - tiled.astype(int)).max() <= 1


def test_a_plan_stays_as_it_was_told_while_things_are_remembered(drawn_engine):
    folder, manifest, backend = drawn_engine.folder, drawn_engine.manifest, drawn_engine.backend
    engine = rt.Engine(folder, manifest, backend, max_memory=1 << 40, remember=1 << 20)
    before = engine.plan(TWO, **OPTIONS)
    engine.prepare(TWO, **OPTIONS)
    assert engine.remembered.bytes > 0 and engine.plan(TWO, **OPTIONS) == before
    tight = rt.Engine(folder, manifest, backend, max_memory=1 << 20)
    assert tight.remembered.limit_bytes == 1 << 16


def test_batches_shrink_to_the_limit(drawn_engine):
    request = drawn_engine.prepare(TWO, **OPTIONS)
    engine = rt.Engine(drawn_engine.folder, drawn_engine.manifest, drawn_engine.backend)
    assert engine.max_batch(request, 4)[0] == 4 and engine.max_batch(request, 100)[0] == 32
    engine.max_memory = 1 << 40
    assert engine.max_batch(request, 4)[0] == 4
    for count in (1, 2, 3):
        engine.max_memory = None
        engine.max_memory = engine._plan(request, count).peak_bytes
        assert engine.max_batch(replace(request, guidance=1.0), 4)[0] >= count
        fitting, plan = engine.max_batch(request, 4)
        assert plan == engine._plan(request, fitting) and plan.peak_bytes <= engine.max_memory


# -- what is remembered -------------------------------------------------------------------------


def test_what_is_remembered_is_bit_equal_and_by_content(drawn_engine, monkeypatch):
    def fresh(remember):
        return rt.Engine(
            drawn_engine.folder, drawn_engine.manifest, drawn_engine.backend, remember=remember
        )

    engine, forgetful = fresh(1 << 20), fresh(0)
    scenes = [TWO, replace(TWO, name="again"), ONE]
    for scene in scenes:
        first, second = (e.prepare(scene, **OPTIONS).binding for e in (engine, forgetful))
        for name in ("text", "null_text", "template", "references"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
    # two texts and six pictures; then all again; then another prompt with five of the pictures
    assert (engine.remembered.misses, engine.remembered.hits) == (8 + 0 + 1, 0 + 8 + 4)
    assert forgetful.remembered.hits == 0 and forgetful.remembered.bytes == 0
    # what a caller does to its own copy does not come back
    engine.prepare(ONE, **OPTIONS).binding.text.fill_(7)
    assert not (engine.prepare(ONE, **OPTIONS).binding.text == 7).any()
    flipped = ONE.subjects[0].references[0].image.transpose(1)
    person = replace(ONE.subjects[0].references[0], image=flipped)
    other = replace(ONE, subjects=(replace(ONE.subjects[0], references=(
        person, *ONE.subjects[0].references[1:])),))  # fmt: skip
    seen, expected = (e.prepare(other, **OPTIONS).binding.references for e in (engine, forgetful))
    assert torch.equal(seen, expected)
    assert not torch.equal(seen, engine.prepare(ONE, **OPTIONS).binding.references)


def test_the_oldest_goes_first_when_it_is_full():
    kept = Remembered(100)
    for name in "abc":
        kept.keep((name,), torch.full((10,), ord(name), dtype=torch.float32))
        assert kept.recall(("a",)) is not None
    assert kept.bytes == 80 and kept.recall(("b",)) is None
    assert kept.recall(("c",))[0] == ord("c")
    kept.keep(("big",), torch.zeros(26))
    assert kept.recall(("big",)) is None and kept.bytes == 80

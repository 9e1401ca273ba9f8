"""The speed suite, timed by a clock that only a double of the backend moves: percentiles, tables,
curves, what goes on after a kill, and what is refused."""

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lumosx_rt.artifact.manifest import read_manifest
from lumosx_rt.artifact.report import write_report
from lumosx_rt.bench.run import benchmark
from lumosx_rt.bench.speed import cold
from lumosx_rt.bench.speed import command as speed_command
from lumosx_rt.bench.speed import page as speed_page
from lumosx_rt.bench.speed.measure import (
    PRODUCT,
    QUICK,
    Extent,
    Subject,
    arithmetic,
    cases,
    ceiling,
    measured,
)
from lumosx_rt.bench.speed.times import percentile, ratio, spread
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import sha256_of
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime.engine import Engine

SETTINGS = {"steps": 2, "shift": 3.0, "guidance": 5.0}
SMALL = {"frames": 5, "height": 32, "width": 64}
FEW = Extent(
    requests=2,
    repeats=3,
    references=(0, 1, 5),
    frames=(0.0, 1.0),
    sides=(0.5, 1.0),
    seeds=(1, 2),
    together=(2,),
)
COLD = {
    "seconds": {"imported": 1, "loaded": 2, "prepared": 3, "first_step": 4, "finished": 5},
    "peak_memory_bytes": 2**30,
}

TOP = {"dtype": "float32", "tflops": 0.001}


class Fake:
    """A backend whose call takes 1 ms a token and stream, tokens of references included."""

    def __init__(self, velocity=torch.zeros_like) -> None:
        self.now, self.calls, self.velocity = 0.0, 0, velocity

    def clock(self) -> float:
        return self.now

    def bind(self, inputs):
        streams, seeds, _, frames, rows, columns = inputs.shape
        tokens = (
            (seeds * frames + inputs.tensors["references"].shape[1]) * (rows // 2) * (columns // 2)
        )

        def run(latents, time):
            self.calls += 1
            self.now += 1e-3 * streams * tokens
            return self.velocity(latents)

        return run

    def describe(self):
        return {"backend": "fake", "device": "cpu, 1 threads"}


@pytest.fixture
def subject(micro, micro_bundle):
    """The micro engine with a double for a backend."""
    manifest = read_manifest(micro.folder)
    manifest = replace(manifest, defaults=manifest.defaults | SMALL)
    fake = Fake()
    engine = Engine(micro.folder, manifest, fake, micro_bundle, remember=0)
    return Subject(engine=engine, settings=SETTINGS, extent=FEW, clock=fake.clock)


@pytest.fixture
def measure(subject, tmp_path):
    """Everything of the subject, kept in a folder."""

    def run(folder=tmp_path / "run", reference=None, subject=subject):
        folder.mkdir(exist_ok=True)
        return speed_command.run(subject, lambda: COLD, lambda: TOP, reference, folder)

    return run


def summary_of(rows, verified=True, why=None):
    machine = {"processor": "abacus", "threads": 1, "torch": "2"}
    return {
        "engine": "x", "verified": verified, "not_verified_because": why, "machine": machine,
        "backend": "fake", "precision": "fp32", "size": SMALL, "settings": SETTINGS, "rows": rows,
        "times": "wall",
    }  # fmt: skip


# -- numbers ------------------------------------------------------------------------------------


def test_percentiles_lie_between_neighbours() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, p) for p in (0.0, 0.5, 0.75, 1.0)] == [1, 3, 4, 5]
    assert percentile([0.0, 10.0], 0.95) == 9.5 and percentile([7.0], 0.95) == 7
    assert spread([0.001, 0.003]) == {"p50": 2.0, "p95": 2.9, "n": 2}


def test_a_ratio_is_of_rounds_so_drift_cancels() -> None:
    assert ratio([1.0, 10.0, 100.0], [0.5, 5.0, 50.0]) == {"ratio": 2.0, "low": 2.0, "high": 2.0}
    found = ratio([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0])
    assert found["low"] < found["ratio"] == 2.5 < found["high"]
    assert found["low"] >= 1 and found["high"] <= 4  # the least and the largest of the rounds
    assert ratio([3.0], [2.0]) == {"ratio": 1.5, "low": 1.5, "high": 1.5}
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])


# -- what is measured ---------------------------------------------------------------------------


def test_requests_steps_and_growth_are_what_the_clock_says(measure) -> None:
    rows = measure()
    frame = 2 * 4  # tokens of a frame of 32x64
    ms = rows["request/two-subjects"]["ms"]
    a_step = 2 * (2 + 6) * frame  # two branches; two latent frames, six pictures
    assert ms["step"] == {"p50": a_step, "p95": a_step, "n": 4}
    assert ms["request"]["p50"] == ms["denoising"]["p50"] == 2 * a_step
    assert ms["to_first_step"]["p50"] == a_step and ms["text"]["p50"] == 0
    assert rows["request/no-references"]["ms"]["step"]["p50"] == 2 * 2 * frame
    for name, tokens in (
        ("references/0", 2 * frame),
        ("references/1", 3 * frame),
        ("references/5", 7 * frame),
        ("frames/1", 5 * frame),
        ("frames/5", 6 * frame),
        ("size/16x32", 6 * 2),
        ("size/32x64", 6 * frame),
    ):
        assert rows[name]["tokens"] == tokens, name
        assert rows[name]["ms"]["step"] == {"p50": 2 * tokens, "p95": 2 * tokens, "n": 3}
    for count in (1, 2):
        seconds = 1e-3 * 2 * 2 * (2 * count + 6) * frame
        hourly = rows[f"seeds/{count}"]["videos_per_hour"]
        assert hourly == pytest.approx(3600 * count / seconds, abs=0.1)
    assert rows["together/2"]["requests"] == 4 and rows["together/2"]["videos_per_hour"] > 0
    assert "speed-up" not in rows and rows["cold"]["seconds"] == COLD["seconds"]


def test_useful_work_over_time_is_a_share_of_the_ceiling(measure, subject) -> None:
    """All products of a step without references, counted one by one."""
    rows = measure()
    config, tokens = subject.engine.config, 2 * 8
    dim, layers = config.dim, config.num_layers
    linears = 6 * dim * dim + 2 * dim * config.ffn_dim  # q, k, v, o; q, o over the text; the MLP
    attention = 2 * dim * (tokens + config.text_len)
    flops = 2 * 2 * layers * tokens * (linears + attention)  # a multiply-add is two; two branches
    assert rows["references/0"]["flops"] == flops
    assert rows["references/5"]["flops"] > 2 * flops
    of_top = flops / (rows["references/0"]["ms"]["step"]["p50"] * 1e-3) / 1e9
    assert speed_page.share(rows["references/0"], TOP) == f"{of_top:.0%}" != "0%"
    assert f" {of_top:.0%}" in speed_page.as_text(summary_of(rows))
    assert "of 0.001 TFLOP/s (float32)" in speed_page.as_text(summary_of(rows))
    assert speed_page.share(rows["cold"], TOP) == speed_page.share(rows["references/0"], {}) == ""


def test_the_ceiling_is_a_product_in_the_engines_arithmetic(subject, monkeypatch) -> None:
    monkeypatch.setitem(PRODUCT, "cpu", 256)
    row = ceiling(replace(subject, clock=time.perf_counter))
    assert row["dtype"] == "float32" and 1e-3 < row["tflops"] < 100
    for backend, precision, device, expected in (
        ("onnxruntime", "fp16", "cuda", torch.float32),
        ("torch", "fp32", "cuda", torch.float32),
        ("torch", "bf16", "cpu", torch.bfloat16),
        ("torch", "fp8", "cpu", torch.float32),
        ("torch", "fp8", "cuda", torch.bfloat16),
        ("tensorrt", "fp16", "cuda", torch.float16),
    ):
        assert arithmetic(backend, precision, device) == expected


def test_without_guidance_a_step_is_one_stream(subject, measure) -> None:
    alone = replace(subject, settings=SETTINGS | {"guidance": 1.0})
    rows = measure(subject=alone)
    assert rows["references/0"]["ms"]["step"]["p50"] == 2 * 8


def test_layouts_outside_the_engine_are_rows_that_say_so(subject, measure) -> None:
    many = replace(subject, extent=replace(FEW, references=(0, 17)))
    rows = measure(subject=many)
    assert "references is 17" in rows["references/17"]["refused"]
    assert "17" in speed_page.as_text(summary_of(rows))


def test_nothing_is_timed_that_is_not_finite(subject, measure) -> None:
    subject.engine.backend.velocity = lambda latents: latents * float("nan")
    rows = measure()
    assert "not finite" in rows["references/1"]["refused"]
    assert "not finite" in rows["request/two-subjects"]["refused"]
    assert not any("ms" in row for row in rows.values())
    speed_page.draw_page(summary_of(rows))


def test_the_reference_runs_in_turns_and_gives_a_ratio(subject, measure, micro_bundle) -> None:
    from lumosx_rt.reference.backbones.loading import load_transformer
    from lumosx_rt.reference.checkpoints.bundle import find_bundle

    model = load_transformer(find_bundle(micro_bundle))
    fake, right = subject.engine.backend, model.forward

    def forward(*inputs, **options):
        fake.now += 3.0
        return right(*inputs, **options)

    model.forward = forward
    row = measure(reference=lambda: model)["speed-up"]
    own = 1e-3 * 2 * 8 * 8
    assert row["ratio"] == pytest.approx(3 / own, rel=1e-3) and row["ms"]["step"]["n"] == 5
    assert row["relative_error"] == pytest.approx(1)  # the double says zero
    assert row["threads"] == 1


# -- what is kept -------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_a_torn_line_is_measured_again(subject, measure, tmp_path) -> None:
    fake, folder = subject.engine.backend, tmp_path / "run"
    folder.mkdir()
    found = cases(subject, lambda: COLD, lambda: TOP, None)
    lines = []
    for name, _ in measured(found, {}, lines.append):
        if name == "references/1":
            break
    kept = "".join(json.dumps(row) + "\n" for row in lines)
    (folder / "rows.jsonl").write_text(kept + '{"case": "references/5", "ms"')
    before = fake.calls
    rows = measure(folder)
    assert list(rows) == [name for name, _ in found]
    first = fake.calls - before
    measure(folder)
    assert fake.calls - before == first  # nothing was left to do
    assert (folder / "rows.jsonl").read_text().startswith(kept)
    assert len((folder / "rows.jsonl").read_text().splitlines()) == len(found)


@pytest.fixture
def engine_runs(micro, micro_bundle, monkeypatch, copied):
    """`engine_runs(folder)`: the whole suite on a copy of the micro engine, hardly anything
    measured."""
    engine = copied(micro.folder)
    manifest = json.loads((engine / "manifest.json").read_text())
    manifest["defaults"] |= SMALL
    (engine / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(speed_command, "cold_request", lambda *words, **options: COLD)
    one = replace(FEW, references=(), frames=(1.0,), sides=(), seeds=(), together=(), requests=1)

    def run(folder: Path, **options):
        return speed_command.bench_speed(
            engine,
            folder,
            settings={"steps": 1, "guidance": None},
            extent=one,
            components=micro_bundle,
            provider="cpu",
            **options,
        )

    run.engine = engine
    return run


def test_only_a_verified_engine_has_a_speed_up(engine_runs, tmp_path, monkeypatch) -> None:
    digest = sha256_of(engine_runs.engine / "manifest.json")
    section = {"passed": True, "steps": 1, "guidance": 1.0, "gate": 1e-4, "scenes": []}
    section |= {"engine_sha256": digest}
    summary = engine_runs(tmp_path / "a")
    told = speed_command.told(summary)
    assert "NOT VERIFIED" in told and "no speed-up: the engine was not verified" in told
    assert "times as fast" not in told and "speed-up" not in summary["rows"]
    assert "request" in told and (tmp_path / "a" / "speed.png").stat().st_size > 5000

    manifest = read_manifest(engine_runs.engine)
    write_report(engine_runs.engine, manifest, verify=section | {"passed": False})
    summary = engine_runs(tmp_path / "a")
    assert not summary["verified"] and "FAILED" in speed_command.told(summary)

    write_report(engine_runs.engine, manifest, verify=section | {"engine_sha256": "another"})
    assert not engine_runs(tmp_path / "a")["verified"]

    write_report(engine_runs.engine, manifest, verify=section)
    summary = engine_runs(tmp_path / "a")
    assert summary["verified"] and summary["rows"]["speed-up"]["relative_error"] < 1e-5
    assert "times as fast" in speed_command.told(summary)
    assert summary["settings"] == {"steps": 1, "shift": 8.0, "guidance": 6.0}
    assert json.loads((tmp_path / "a" / "summary.json").read_text()) == summary

    write_report(engine_runs.engine, manifest, verify=section | {"passed": False})
    assert "times as fast" not in speed_command.told(engine_runs(tmp_path / "a"))

    monkeypatch.setattr(speed_command, "code_digest", lambda: "another")
    with pytest.raises(LumosXError, match="another code"):
        engine_runs(tmp_path / "a")


@pytest.mark.slow
def test_a_first_request_in_its_own_process(micro, micro_bundle, copied, monkeypatch) -> None:
    settings = {"steps": 1, "shift": 3.0, "guidance": 1.0}
    options = {"components": micro_bundle, "provider": "cpu", "trust": False}
    folder = copied(micro.folder)
    manifest = read_manifest(folder)
    replace(manifest, defaults=manifest.defaults | SMALL).write(folder)
    found = cold.cold_request(folder, settings=settings, **options)
    points = list(found["seconds"].values())
    assert points == sorted(points) and points[0] > 0 and len(points) == 5
    assert found["peak_memory_bytes"] > 50 << 20

    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nLumosXError: no room")
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: failed)
    with pytest.raises(LumosXError, match="failed: LumosXError: no room"):
        cold.cold_request(micro.folder, settings=settings, **options)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"suite": "binding", "quick": True}, "only speed can be quick"),
        ({"suite": "speed", "scenes": 3}, "timed without them"),
        ({"suite": "speed", "against": Path("scenes.jsonl")}, "timed without them"),
        ({"suite": "speed"}, "is no engine"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, options, match) -> None:
    with pytest.raises(LumosXError, match=match):
        benchmark(tmp_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_names_its_suite(run, tmp_path) -> None:
    done = run("bench", tmp_path, "--suite", "speed", "--quick", code=1)
    assert "no engine" in done.stderr
    assert set(QUICK.references) <= set(Extent().references)


# -- pictures -----------------------------------------------------------------------------------


def test_the_page_shows_every_chart_it_has_points_for(measure) -> None:
    rows = measure()
    page = speed_page.draw_page(summary_of(rows))
    few = speed_page.draw_page(summary_of({n: r for n, r in rows.items() if "request" in n}))
    assert page.height > few.height + 400
    assert builtin_scenes()[0].name in speed_page.as_text(summary_of(rows))

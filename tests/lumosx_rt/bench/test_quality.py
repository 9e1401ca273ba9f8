"""The binding benchmark: what it keeps, what it refuses, and that a killed run goes on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lumosx_rt.bench.common.makers import Sampling, by_vae, sampled
from lumosx_rt.bench.quality.page import choose, draw_page
from lumosx_rt.bench.quality.suite import (
    Result,
    identity_of,
    read_clip,
    read_results,
    run_suite,
    world_sha256,
)
from lumosx_rt.bench.quality.table import as_text, compare, summarise
from lumosx_rt.bench.run import benchmark
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.scene_lists import BINDING, BINDING_CI
from lumosx_rt.reference.world.score import METRICS
from lumosx_rt.reference.world.story import story

STORIES = [story(0, 1, True), story(1, 2, True), story(2, 3, True)]
IDENTITY = identity_of("test", BINDING_CI, {"transformer": "abc", "sampling": {"steps": 2}})


def swapped(told):
    """Everybody has what the next one should have."""
    nexts = (*told.people[1:], told.people[0])
    pairs = zip(told.people, nexts, strict=True)
    people = tuple(replace(person, attributes=other.attributes) for person, other in pairs)
    return draw.frames_of(replace(told, people=people))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs, perfect and swapped: their folders and results."""
    root = tmp_path_factory.mktemp("runs")
    makers = {"perfect": draw.frames_of, "swapped": swapped}
    return {
        name: (root / name, run_suite(maker, STORIES, root / name, IDENTITY | {"maker": name}))
        for name, maker in makers.items()
    }


class Counting:
    """The perfect renderer; stops as a killed one does when `lives` are spent."""

    def __init__(self, lives=99):
        self.made, self.lives = [], lives

    def __call__(self, told):
        if len(self.made) == self.lives:
            raise KeyboardInterrupt
        self.made.append(told.name)
        return draw.frames_of(told)


def without_times(results):
    return [replace(result, seconds=0) for result in results]


# -- what is kept -------------------------------------------------------------------------------


def test_a_run_keeps_every_scene_with_its_clip(runs):
    folder, results = runs["perfect"]
    assert [result.name for result in results] == [told.name for told in STORIES]
    assert read_results(folder / "scenes.jsonl") == results
    for told in STORIES:
        assert (read_clip(folder, told.name) == draw.frames_of(told)).all()
    assert not [path for path in folder.rglob(".*")]


def test_a_run_that_was_killed_goes_on_and_ends_the_same(tmp_path, runs):
    first, second = Counting(lives=1), Counting()
    with pytest.raises(KeyboardInterrupt):
        run_suite(first, STORIES, tmp_path / "run", IDENTITY)
    file = tmp_path / "run" / "scenes.jsonl"
    with file.open("a") as stream:
        stream.write('{"name": "held-out-2-0000')  # torn
    assert [result.name for result in read_results(file)] == first.made
    told = []
    results = run_suite(
        second, STORIES, tmp_path / "run", IDENTITY, lambda *words: told.append(words)
    )
    assert first.made + second.made == [one.name for one in STORIES]
    assert without_times(results) == without_times(runs["perfect"][1])
    assert len(file.read_text().splitlines()) == 3 and read_results(file) == results
    assert told == [(STORIES[1].name, 1, 3), (STORIES[2].name, 2, 3), ("done", 3, 3)]
    third = Counting()
    assert run_suite(third, STORIES[:2], tmp_path / "run", IDENTITY) == results[:2]
    assert not third.made


def test_another_run_is_refused_by_what_differs(tmp_path):
    run_suite(Counting(), [], tmp_path / "run", IDENTITY)
    other = identity_of("test", BINDING, {"transformer": "abc", "sampling": {"steps": 3}})
    with pytest.raises(LumosXError) as refused:
        run_suite(Counting(), [], tmp_path / "run", other)
    said = str(refused.value)
    assert "maker.sampling.steps" in said and "list.sha256" in said and "transformer" not in said


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(LumosXError, match="holds no benchmark"):
        run_suite(Counting(), STORIES, tmp_path, IDENTITY)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(LumosXError, match="not the run.json"):
        run_suite(Counting(), STORIES, tmp_path, IDENTITY)


@pytest.mark.parametrize("line", ["no json", "[]", '{"name": "x"}', '"tally"'])
def test_lines_of_something_else_are_refused(tmp_path, line):
    file = tmp_path / "scenes.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(LumosXError, match="line 1"):
        read_results(file)


# -- table and page -----------------------------------------------------------------------------


def test_the_summary_has_every_metric_for_every_number_of_people(runs):
    summary = summarise(runs["perfect"][1])
    assert {name: group["scenes"] for name, group in summary["groups"].items()} == {
        "1": 1,
        "2": 1,
        "3": 1,
        "all": 3,
    }
    everything = summary["groups"]["all"]
    assert everything["identity"] == {"value": 1, "low": 1, "high": 1}
    assert set(everything) == {"scenes", *METRICS}
    json.dumps(summary, allow_nan=False)
    lines = as_text(summary).splitlines()
    assert len(lines) == 1 + len(METRICS) and "2 people (1)" in lines[0]
    assert "1.000 [1.000, 1.000]" in lines[1 + METRICS.index("identity")]


def test_differences_are_of_the_scenes_that_both_have(runs):
    perfect, wrong = runs["perfect"][1], runs["swapped"][1]
    found = compare(perfect[1:], wrong)
    assert found["scenes"] == 2 and found["groups"]["all"]["binding"]["value"] == 1
    assert found["groups"]["all"]["identity"]["value"] == 0
    assert "+1.000 [+1.000, +1.000]" in as_text(found, signed=True)
    with pytest.raises(LumosXError, match="no scene in common"):
        compare(perfect[:1], wrong[1:])


def test_the_page_shows_hits_and_misses():
    tally = dict.fromkeys(METRICS, (1.0, 1.0))
    missed = tally | {"binding": (0.0, 1.0)}
    results = [Result(f"{i}", i, 1, 0.0, {}, missed if i % 4 == 0 else tally) for i in range(100)]
    chosen = choose(results)
    assert len(chosen) == 12 and sum(r.tally["binding"][0] == 0 for r in chosen) == 6
    assert chosen == sorted(chosen, key=lambda r: r.seed)
    assert len(choose(results[:5])) == 5 and len(choose(results[1:4])) == 3
    few = choose([r for r in results if r.seed % 4 == 0 or r.seed == 1])
    assert sum(r.tally["binding"][0] for r in few) == 1 and len(few) == 12


def test_a_page_marks_what_is_wrong_in_red_alone(runs):
    red, green = ((198, 40, 40), (46, 125, 50))
    for name, wrong in (("perfect", False), ("swapped", True)):
        folder, results = runs[name]
        colours = {c for _, c in draw_page(results, STORIES, folder).getcolors(1 << 24)}
        assert green in colours and (red in colours) == wrong


# -- models -------------------------------------------------------------------------------------


def test_engine_and_bundle_make_the_same_clip(micro, micro_bundle):
    told = STORIES[1]
    sampling = Sampling(steps=2, guidance=2.0)
    engine = sampled(micro.folder, sampling, provider="cpu")
    reference = sampled(micro_bundle, sampling)
    a, b = (maker.make_clip(told).astype(float) for maker in (engine, reference))
    assert a.shape == (9, 64, 144, 3) and np.abs(a - b).mean() < 0.5
    assert engine.identity["transformer"] == reference.identity["transformer"]
    assert engine.identity != reference.identity
    other = sampled(micro_bundle, replace(sampling, steps=1))
    assert other.identity != reference.identity
    assert np.abs(other.make_clip(told) - b).mean() > 0.5


def test_the_vae_alone_sees_the_target(micro_engine):
    class Same:
        def encode(self, pixels):
            assert pixels.shape == (1, 3, 9, 64, 144) and -1 <= pixels.min() < pixels.max() <= 1
            return pixels

        def decode_frames_uint8(self, latents):
            frames = ((latents[0] + 1) / 2 * 255).round()
            return frames.permute(1, 2, 3, 0).byte().numpy()

    assert (by_vae(Same())(STORIES[0]) == draw.frames_of(STORIES[0])).all()
    assert by_vae(micro_engine.vae)(STORIES[0]).shape == (9, 64, 144, 3)


# -- the command --------------------------------------------------------------------------------


def test_the_command_runs_a_suite_and_finds_it_again(run, micro_bundle, tmp_path):
    words = ["bench", micro_bundle, "--suite", "vae-ceiling", "--list", "ci", "--scenes", 2]
    done = run(*words, "-o", tmp_path / "run", "--json")
    summary = json.loads(done.stdout)
    assert summary["scenes"] == 2 and summary["list"] == BINDING_CI.name
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    with Image.open(tmp_path / "run" / "page.png") as page:
        assert min(page.size) > 400
    before = (tmp_path / "run" / "scenes.jsonl").read_bytes()
    against = ["--against", tmp_path / "run" / "scenes.jsonl"]
    again = run(*words, "-o", tmp_path / "run", *against)
    assert (tmp_path / "run" / "scenes.jsonl").read_bytes() == before
    assert "+0.000 [+0.000, +0.000]" in again.stdout and "identity" in again.stdout
    assert "already" not in again.stderr and "loading" in again.stderr


@pytest.mark.parametrize(
    "options, said",
    [
        ({"suite": "beauty"}, "binding, stills, vae-ceiling"),
        ({"scene_list": "long"}, "full, ci"),
        ({"scenes": 0}, "1 to 200"),
        ({"scenes": 13, "scene_list": "ci"}, "1 to 12"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_loaded(tmp_path, options, said):
    with pytest.raises(LumosXError, match=said):
        benchmark(tmp_path / "nothing", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_path_that_is_no_model_is_refused(run, tmp_path):
    done = run("bench", tmp_path / "nothing", "-o", tmp_path / "run", code=1)
    assert "no engine" in done.stderr and not (tmp_path / "run").exists()


def test_a_run_judged_by_other_code_is_not_compared(micro_bundle, runs, tmp_path):
    folder, _ = runs["perfect"]
    old = tmp_path / "old"
    old.mkdir()
    (old / "scenes.jsonl").write_bytes((folder / "scenes.jsonl").read_bytes())
    (old / "run.json").write_text(json.dumps({"world": "another"}))
    options = {"suite": "vae-ceiling", "against": old / "scenes.jsonl"}
    with pytest.raises(LumosXError, match="another version"):
        benchmark(micro_bundle, tmp_path / "run", **options)
    assert world_sha256() != "another" and not (tmp_path / "run").exists()


def test_against_a_file_without_results_is_refused(tmp_path):
    with pytest.raises(LumosXError, match="no results"):
        benchmark(tmp_path, tmp_path / "run", against=tmp_path / "scenes.jsonl")


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    from lumosx_rt.bench.common.folder import claim

    claim(tmp_path / "run", {"a": 1})
    half = tmp_path / "run" / "clips" / ".scene.png.4964.partial"
    half.parent.mkdir()
    half.touch()
    whole = half.with_name("scene.png")
    whole.touch()
    claim(tmp_path / "run", {"a": 1})
    assert whole.exists() and not half.exists()

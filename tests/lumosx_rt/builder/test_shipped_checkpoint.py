"""The checkpoint in the repository: it puts the right attribute on the right face, and its engine
does the same. Twelve held-out scenes; the README has the numbers over two hundred."""

from pathlib import Path

import numpy as np
import pytest

import lumosx_rt as rt
from lumosx_rt.artifact.certificate import digest_of
from lumosx_rt.artifact.report import read_report
from lumosx_rt.bench.common.makers import Sampling, reference_engine
from lumosx_rt.bench.quality.suite import read_clip, read_results
from lumosx_rt.bench.run import benchmark
from lumosx_rt.reference.world import score
from lumosx_rt.reference.world.judge import judge
from lumosx_rt.reference.world.scene_lists import BINDING_CI
from lumosx_rt.reference.world.scenes import scene_of
from tests.conftest import built

CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "tiny"
WEIGHTS_MB = 20
COMPARED = 5  # scenes that the engine makes too


@pytest.fixture(scope="module")
def reference_run(surroundings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return folder, benchmark(CHECKPOINT, folder, scene_list="ci")


@pytest.mark.slow
def test_identity_and_binding(reference_run):
    _, summary = reference_run
    rates = {name: summary["groups"]["all"][name]["value"] for name in score.METRICS}
    assert rates["identity"] >= 0.85 and rates["binding"] >= 0.85 and rates["swapped"] <= 0.1
    assert rates["backdrop"] == 1.0 and rates["motion"] >= 0.75


@pytest.mark.slow
def test_the_same_pictures_without_relations_are_bound_wrongly(reference_run):
    """The measure can fail: grouping is what tells whose hat is whose."""
    folder, _ = reference_run
    engine = reference_engine(CHECKPOINT)
    tallies = {"related": [], "unrelated": []}
    results = {result.name: result for result in read_results(folder / "scenes.jsonl")}
    pairs = [told for told in BINDING_CI.stories if len(told.people) == 2]
    for told in pairs:
        request = engine.prepare(scene_of(told), seeds=(told.seed,))
        request = next(r for c, r in request.controls(engine.config) if c.name == "relations")
        *_, last = engine.sample(request)
        seen = judge(engine.vae.decode_frames_uint8(last.latents[0]), told)
        tallies["unrelated"].append(score.tally(seen))
        tallies["related"].append(results[told.name].tally)
    rates = {name: score.estimates(found)["binding"].value for name, found in tallies.items()}
    assert rates["related"] - rates["unrelated"] > 0.15, rates


@pytest.mark.slow
def test_the_engine_makes_the_same_clips(reference_run, shared, tmp_path):
    folder, _ = reference_run
    engine = built(shared / "trained", CHECKPOINT)
    whole = folder / "scenes.jsonl"
    summary = benchmark(engine.folder, tmp_path, scene_list="ci", scenes=COMPARED, against=whole)
    for name in score.METRICS:
        assert abs(summary["against"]["groups"]["all"][name]["value"]) < 1e-2, name
    told = read_report(engine.folder)["binding"]  # its certificate has it too
    assert told["scenes"] == COMPARED and told["engine_sha256"] == digest_of(engine.folder)
    assert told["differences"]["binding"] == summary["against"]["groups"]["all"]["binding"]
    assert "## Binding" in (engine.folder / "report.md").read_text("utf-8")
    for told in BINDING_CI.stories[:COMPARED]:
        one, other = (read_clip(run, told.name).astype(int) for run in (folder, tmp_path))
        assert np.abs(one - other).max() <= 2  # truncation to 8 bits may fall the other way


@pytest.mark.slow
def test_its_defaults_are_the_ones_it_was_trained_for(shared):
    engine = rt.load(built(shared / "trained", CHECKPOINT).folder)
    request = engine.prepare(scene_of(BINDING_CI.stories[0]))
    assert (request.steps, request.shift, request.guidance) == (
        Sampling.steps,
        Sampling.shift,
        Sampling.guidance,
    )
    assert (request.size.frames, request.size.height, request.size.width) == (9, 64, 144)


def test_all_weights_together_are_small():
    weights = sum(file.stat().st_size for file in CHECKPOINT.rglob("*.safetensors"))
    assert 0 < weights <= WEIGHTS_MB * 10**6
    assert (CHECKPOINT / "README.md").is_file()

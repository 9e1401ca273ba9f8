"""The backend torch: one package for every layout, as close as the reference itself."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import PACKAGE, check_files, read_manifest
from lumosx_rt.artifact.report import read_report
from lumosx_rt.backends.common.devices import device_facts
from lumosx_rt.backends.common.forward_parity import forward_parity
from lumosx_rt.backends.torch.compile import DTYPES
from lumosx_rt.bench.common.makers import Sampling, sampled
from lumosx_rt.parity.verify import ROUNDED_GATE, verify
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.denoise import denoise
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import Inputs
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.reference.world.story import story
from tests.helpers.inputs import bound, model_inputs

SIZE = rt.VideoSize(5, 32, 48)
NONE, ONE, TWO = builtin_scenes()
CASES = {  # streams' layouts, seeds
    "as traced": (["3x4x9+2+2.3", "3x4x9+3+2.2"], 3),
    "no references": (["2x3x5+0+-"], 1),
    "no references, streams and seeds": (["2x3x5+0+-"] * 3, 2),
    "one group, one stream, one frame": (["1x4x4+0+2"], 1),
    "one reference": (["2x3x9+1+-"], 1),
    "unequal groups": (["2x3x9+1+3", "2x3x9+0+1.3"], 1),
    "several seeds": (["2x3x9+1+2.1"], 4),
    "streams and seeds": (["2x2x9+1+2.1", "2x2x9+4+-", "2x2x9+0+4"], 2),
    "wide": (["5x2x26+3+1"], 1),
    "tall, two rows of tiles": (["1x11x9+1+2"], 1),
    "one token": (["1x1x1+0+-"], 1),
    "one token, one image": (["1x1x1+0+1"], 1),
    "many references": (["1x2x3+3+4.5.1.3"], 1),
    "visibility off": (["2x3x4+1+2+novis"], 1),
    "positions and tiling off": (["2x3x9+1+2.2+nopos+notiling"], 1),
}


@pytest.fixture(scope="module")
def model(micro_bundle):
    return load_transformer(micro_bundle)


def example(model: LumosX, case: str):
    keys, seeds = CASES[case]
    layouts = [SceneLayout.from_key(key) for key in keys]
    latents, time, text, references, template, structure = model_inputs(
        model.config, layouts, seeds, seed=1
    )
    return latents, int(time[0]), bound(text, references, template, structure, latents.shape)


def exact(model: LumosX, latents: torch.Tensor, time: int, given: Inputs) -> torch.Tensor:
    """The reference in float64 throughout."""
    precise = recast(model, torch.float64).double()
    wide = {n: x.double() if x.is_floating_point() else x for n, x in given.tensors.items()}
    with torch.no_grad():
        arguments = given.changed(**wide).arguments()
        return precise(latents.double(), torch.full(latents.shape[:1], time), *arguments)


# -- what is built ------------------------------------------------------------------------------


def test_a_checkpoint_becomes_one_package(compiled, micro):
    manifest = read_manifest(compiled.folder)
    check_files(compiled.folder, manifest)
    assert (manifest.backend, manifest.precision) == ("torch", "fp32")
    assert set(manifest.files) == {PACKAGE} and compiled.printed == ""
    assert manifest.device == device_facts("cpu") and manifest.device["name"] == "cpu"
    assert manifest.versions["torch"] == torch.__version__.split("+")[0]
    assert manifest.layouts == read_manifest(micro.folder).layouts
    assert cache.compiled_here(manifest.files[PACKAGE].sha256)
    assert [p.name for p in compiled.folder.parent.iterdir() if ".compiled." in p.name] == []


def test_what_it_takes_is_told(compiled):
    facts = read_report(compiled.folder)["build"]
    assert facts["compile_seconds"] > 0 and facts["device"] == device_facts("cpu")
    assert all(0 < c["relative_error"] <= c["gate"] == 1e-5 for c in facts["parity"])
    assert "compiled in" in (compiled.folder / "report.md").read_text(encoding="utf-8")
    assert any(line.startswith("device: cpu") for line in compiled.lines)
    assert {"tracing the model", "reading the weights"} <= set(compiled.lines)


# -- the same numbers ---------------------------------------------------------------------------


def test_one_package_for_every_layout(compiled_engine, model):
    """In any order, and the first again: nothing is compiled for a layout, nothing is kept."""
    backend, eager = compiled_engine.backend, EagerBackend(model)
    first = None
    for case in (*CASES, next(iter(CASES))):
        latents, time, given = example(model, case)
        actual = backend.bind(given)(latents, time)
        expected = exact(model, latents, time, given)
        own = relative_error(eager.bind(given)(latents, time), expected)
        assert actual.shape == latents.shape and expected.std() > 0.1
        assert relative_error(actual, expected) < max(2 * own, 1e-6), case
        first = actual if first is None else first
    assert torch.equal(actual, first)


def test_requests_do_not_disturb_each_other(compiled_engine, model):
    bound = {}
    for case in ("several seeds", "no references"):
        latents, time, given = example(model, case)
        run = compiled_engine.backend.bind(given)
        bound[case] = (run, latents, time, run(latents, time).clone())
    for run, latents, time, expected in bound.values():
        assert not torch.equal(run(latents, 1 + time % 999), expected)
        assert torch.equal(run(latents, time), expected)


def test_inputs_that_contradict_each_other_never_reach_compiled_code(compiled_engine, model):
    latents, _, given = example(model, "several seeds")
    for wrong in (
        given.changed(template=given.tensors["template"][:, :-1]),
        given.changed(text=given.tensors["text"][:, :-1]),
        given.changed(references=given.tensors["references"].flatten(0, 1)),
        replace(given, shape=(2, *latents.shape[1:])),
    ):
        with pytest.raises(LumosXError, match="got shape"):
            compiled_engine.backend.bind(wrong)


def test_the_video_is_that_of_the_onnxruntime_engine(compiled_engine, micro_engine):
    options = {"size": SIZE, "steps": 3, "seeds": [4, 9]}
    for scene in (NONE, TWO):
        pairs = zip(
            compiled_engine.generate(scene, **options),
            micro_engine.generate(scene, **options),
            strict=True,
        )
        for actual, expected in pairs:
            difference = np.abs(actual.frames.astype(int) - expected.frames.astype(int))
            assert actual.seed == expected.seed and difference.max() <= 1
        latents = [
            list(denoise(e.backend, e.prepare(scene, **options), e.config.head_dim))[-1].latents
            for e in (compiled_engine, micro_engine)
        ]
        assert relative_error(*latents) < 1e-5


def test_verify_passes_it_and_fails_a_wrong_one(compiled, micro_bundle, copied, monkeypatch):
    engine = rt.load(copied(compiled.folder), components=micro_bundle)
    options = {"checkpoint": micro_bundle, "size": SIZE, "steps": 2}
    section = verify(engine, [NONE, TWO], **options)
    assert section["passed"] and section["gate"] == 1e-4
    assert section["engine"]["backend"] == "torch" and "threads" in section["engine"]["device"]
    right = engine.backend.bind

    def bind(inputs):
        run = right(inputs)
        return lambda latents, time: run(latents, time) * 1.001

    monkeypatch.setattr(engine.backend, "bind", bind)
    assert not verify(engine, [TWO], **options)["passed"]


def test_the_benchmark_runs_it(compiled, micro_bundle):
    maker = sampled(compiled.folder, Sampling(steps=1, frames=5), micro_bundle)
    assert maker.identity["backend"] == "torch" and PACKAGE in maker.identity["files"]
    assert maker.make_clip(story(0, 1, True)).shape[0] == 5


class FailingPackage:
    """A package whose call fails as a compiled one does: the reason is on stderr alone."""

    def __init__(self, said: str) -> None:
        self.said = said

    def run(self, inputs):
        os.write(2, self.said.encode())
        raise RuntimeError("run_func_( container_handle_ ) API call failed at model.cpp")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Exception in aoti_torch: No valid execution plans built.\n", "No valid execution plans"),
        ("something else\n", "run_func_"),
    ],
)
def test_a_failed_call_quotes_the_reason(compiled_engine, model, monkeypatch, capfd, said, told):
    latents, time, given = example(model, "one group, one stream, one frame")
    run = compiled_engine.backend.bind(given)
    monkeypatch.setattr(compiled_engine.backend, "_model", FailingPackage(said))
    with pytest.raises(LumosXError, match=f"torch failed at time {time}: {told}"):
        run(latents, time)
    os.write(2, b"as before")  # stderr is where it was
    assert capfd.readouterr().err == said + "as before"


# -- bf16 ---------------------------------------------------------------------------------------


def test_recast_is_how_a_checkpoint_would_be_loaded(micro_bundle, model):
    expected = load_transformer(micro_bundle, dtype=torch.bfloat16)
    actual = recast(model, torch.bfloat16)
    for name, weight in expected.state_dict().items():
        found = actual.state_dict()[name]
        assert found.dtype == weight.dtype and torch.equal(found, weight), name
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in actual.parameters()} == {torch.float32, torch.bfloat16}


def test_the_gate_of_bf16_is_what_the_reference_errs_itself(model):
    rounded = EagerBackend(recast(model, torch.bfloat16))
    for result in forward_parity(model, rounded, "bf16"):
        assert result["gate"] == pytest.approx(ROUNDED_GATE * result["relative_error"])
        assert 1e-4 < result["gate"] < 3e-2
    other = recast(model, torch.bfloat16)
    with torch.no_grad():
        other.patch_embedding.weight *= 1.5
    results = forward_parity(model, EagerBackend(other), "bf16")
    assert all(result["relative_error"] > result["gate"] for result in results)


def test_verify_gates_bf16_per_scene(micro, micro_bundle, copied, model):
    folder = copied(micro.folder)
    manifest = replace(read_manifest(folder), precision="bf16")
    rounded = recast(model, torch.bfloat16)
    options = {"checkpoint": micro_bundle, "size": SIZE, "steps": 2}
    engine = rt.Engine(folder, manifest, EagerBackend(rounded), micro_bundle)
    section = verify(engine, [NONE], **options)
    (scene,) = section["scenes"]
    assert section["passed"] and section["gate"] == scene["gate"]
    assert scene["gate"] == pytest.approx(ROUNDED_GATE * scene["final_relative_error"])
    other = recast(model, torch.bfloat16)
    with torch.no_grad():
        other.patch_embedding.weight *= 1.5
    engine = rt.Engine(folder, manifest, EagerBackend(other), micro_bundle)
    assert not verify(engine, [NONE], **options)["passed"]


@pytest.mark.slow
def test_a_bf16_package_is_as_close_as_the_reference_in_bf16(micro_bundle, model, tmp_path):
    folder = rt.build(
        micro_bundle, tmp_path / "engine", backend="torch", device="cpu", precision="bf16"
    )
    engine = rt.load(folder)
    assert engine.manifest.precision == "bf16"
    rounded = EagerBackend(recast(model, torch.bfloat16))
    for case in CASES:
        latents, time, given = example(model, case)
        expected = exact(model, latents, time, given)
        own = relative_error(rounded.bind(given)(latents, time), expected)
        actual = relative_error(engine.backend.bind(given)(latents, time), expected)
        assert 1e-5 < actual <= ROUNDED_GATE * own, case
    section = verify(engine, [NONE, TWO], checkpoint=micro_bundle, size=SIZE, steps=2)
    assert section["scenes"][0]["passed"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_replays_one_graph_per_request(micro_bundle, model, tmp_path, precision):
    folder = rt.build(
        micro_bundle, tmp_path / "engine", backend="torch", device="cuda", precision=precision
    )
    backend = rt.load(folder).backend
    eager = EagerBackend(recast(model, DTYPES[precision]))
    for case in CASES:
        latents, time, given = example(model, case)
        run, expected = backend.bind(given), exact(model, latents, time, given)
        own = relative_error(eager.bind(given)(latents, time), expected)
        for _ in range(2):  # captured, then replayed
            assert relative_error(run(latents, time), expected) <= max(3 * own, 1e-5), case

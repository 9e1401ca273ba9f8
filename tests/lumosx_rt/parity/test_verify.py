"""The comparison with the reference: it passes for a right engine and for no other."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import check_files
from lumosx_rt.artifact.source import random_transformer
from lumosx_rt.backends.common.forward_parity import FORWARD_CASES, forward_parity
from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend
from lumosx_rt.calibration.formats import FORMATS
from lumosx_rt.cli.main import app
from lumosx_rt.parity.verify import verify
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.metrics import peak_signal_to_noise, relative_error
from lumosx_rt.reference.sampling import denoise as runtime
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.scenes.builtin import builtin_scenes

SIZE = rt.VideoSize(5, 32, 48)
SIZE_OPTIONS = ["--frames", "5", "--height", "32", "--width", "48"]
NONE, ONE, TWO = builtin_scenes()


def strict_json(path):
    """JSON as every reader understands it: no NaN, no Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture
def engine(micro, micro_bundle, copied):
    """A copy of the micro engine, to write reports into."""
    return rt.load(copied(micro.folder), components=micro_bundle, provider="cpu")


@pytest.fixture
def check(engine, micro_bundle):
    """Verifies the copy with its checkpoint: `check(scenes, **options)`."""

    def run(scenes=(NONE, ONE, TWO), **options):
        options = {"checkpoint": micro_bundle, "size": SIZE, "steps": 3} | options
        return verify(engine, list(scenes), **options)

    return run


# -- numbers ------------------------------------------------------------------------------------


def test_the_gates_are_those_that_were_promised():
    gates = {name: found.gate for name, found in FORMATS.items() if found.gate}
    assert gates == {"fp32": 1e-4, "fp16": 1e-3}


def test_relative_error_by_hand():
    expected = torch.tensor([[0.6, 0.8]])
    assert relative_error(torch.tensor([[1.0, 0.0]]), expected) == pytest.approx(math.sqrt(0.8))
    assert relative_error(expected.clone(), expected) == 0
    assert relative_error(torch.tensor([3.0, 4.0]), torch.zeros(2)) > 1e6
    assert math.isnan(relative_error(torch.tensor([math.nan]), torch.ones(1)))
    # small differences of large numbers survive
    big = torch.full((4,), 1e4)
    assert relative_error(big + 1e-3, big) == pytest.approx(9.766e-08, rel=1e-3)


def test_peak_signal_to_noise_by_hand():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert peak_signal_to_noise(black, black) is None
    assert peak_signal_to_noise(black + 1, black) == pytest.approx(48.1308, abs=1e-4)
    assert peak_signal_to_noise(black, black + 255) == 0
    half = black.copy()
    half[0] = 10
    assert peak_signal_to_noise(half, black) == pytest.approx(10 * math.log10(255**2 / 50))


# -- built-in scenes ----------------------------------------------------------------------------


def test_the_builtin_scenes_are_sound_and_cover_the_groupings():
    assert [scene.check(max_references=16, max_members=16) for scene in builtin_scenes()] == [
        []
    ] * 3
    groupings = [(scene.lone, scene.subject_sizes) for scene in builtin_scenes()]
    assert groupings == [(0, ()), (0, (3,)), (1, (3, 2))]
    pictures = TWO.fitted(32, 48).reshape(6, -1).astype(float)
    distances = [np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(distances) > 5  # all six can be told apart


# -- one forward pass ---------------------------------------------------------------------------


def test_one_pass_per_grouping_agrees_with_the_right_weights_only(micro, micro_bundle):
    backend = OnnxRuntimeBackend(micro.folder / "transformer" / "model.onnx", "cpu")
    model = load_transformer(micro_bundle)
    results = forward_parity(model, backend)
    assert len(results) == len(FORWARD_CASES) >= 4
    assert all(0 < r["relative_error"] < r["gate"] == 1e-5 for r in results)
    with torch.no_grad():
        model.blocks[1].cross_attn.k.weight[0, 0] += 1.0
    assert all(r["relative_error"] > 1e-6 for r in forward_parity(model, backend))
    other = random_transformer(model.config, 1)
    assert all(r["relative_error"] > 0.1 for r in forward_parity(other, backend))


def test_one_pass_covers_what_was_asked_for():
    layouts = [[SceneLayout.from_key(key) for key in keys] for keys, _ in FORWARD_CASES]
    assert any(layout.references == 0 for (layout, *_) in layouts)
    assert any(len(layout.subjects) == 1 for (layout, *_) in layouts)
    assert any(len(streams) > 1 and streams[0] != streams[1] for streams in layouts)
    assert any(len(set(layout.subjects)) > 1 for streams in layouts for layout in streams)
    assert max(seeds for _, seeds in FORWARD_CASES) > 1


# -- a right engine -----------------------------------------------------------------------------


def test_a_right_engine_passes(drawn, copied):
    engine = rt.load(copied(drawn.folder), provider="cpu")
    seen = []
    section = verify(
        engine, [NONE, TWO], size=SIZE, steps=2, progress=lambda *what: seen.append(what)
    )
    assert section["passed"] is True and section["gate"] == 1e-4
    assert all(s["passed"] and s["sound"] for s in section["scenes"])
    assert all(0 < s["final_relative_error"] < 1e-5 for s in section["scenes"])
    assert [s["control_relative_error"] is None for s in section["scenes"]] == [True, False]
    assert section["scenes"][1]["control_relative_error"] > 1e-3
    check_files(engine.folder, engine.manifest)  # reports do not count
    # steps done never fall, and end with all of them
    counts = [done for _, done, _ in seen]
    assert counts == sorted(counts) and counts[-1] == 8 and {of for *_, of in seen} == {8}


def test_the_numbers_are_those_of_the_trajectories(check, engine, micro_bundle):
    section = check([TWO], steps=4, seeds=(3, 11))
    (found,) = section["scenes"]
    request = engine.prepare(TWO, size=SIZE, steps=4, seeds=(3, 11))
    eager = EagerBackend(load_transformer(micro_bundle))
    actual, expected = (
        [s.latents.numpy().astype(np.float64) for s in runtime.denoise(backend, request, 16)]
        for backend in (engine.backend, eager)
    )
    assert (actual[0] == expected[0]).all() and found["layout"] == "2x2x3+1+3.2"
    errors = [
        np.sqrt(((a - b) ** 2).sum() / (b**2).sum())
        for a, b in zip(actual[1:], expected[1:], strict=True)
    ]
    assert found["step_relative_errors"] == pytest.approx(errors, rel=1e-6)
    assert found["final_relative_error"] == pytest.approx(errors[-1], rel=1e-6)
    frames = [
        engine.vae.decode_frames_uint8(torch.from_numpy(x[-1][0]).float()).astype(np.float64)
        for x in (actual, expected)
    ]
    error = ((frames[0] - frames[1]) ** 2).mean()
    if error == 0:
        assert found["psnr_db"] is None
    else:
        assert found["psnr_db"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-6)
    # the control: everybody alone, bound to no word
    layout = SceneLayout.from_key("2x2x3+6+-")
    binding = replace(request.binding, template=torch.zeros_like(request.binding.template))
    wrong = replace(request, layout=layout, binding=binding)
    *_, last = runtime.denoise(engine.backend, wrong, 16)
    distance = ((last.latents.numpy() - expected[-1]) ** 2).sum() / (expected[-1] ** 2).sum()
    assert found["control_relative_error"] == pytest.approx(math.sqrt(distance), rel=1e-5)


def test_the_report_says_what_was_found(check, engine):
    section = check(steps=2, seeds=(0, 1))
    report = strict_json(engine.folder / "report.json")
    assert report["verify"] == section and report["build"]["opset"] == 23
    assert section["steps"] == 2 and section["seeds"] == [0, 1] and section["guidance"] == 6.0
    assert section["engine"]["backend"] == "onnxruntime"
    assert section["reference"]["backend"] == "eager"
    assert report["environment"]["checkpoint"] == engine.manifest.checkpoint["sha256"]
    text = (engine.folder / "report.md").read_text(encoding="utf-8")
    assert "Verification: passed" in text and "FAILED" not in text
    for scene in section["scenes"]:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {scene['scene']} |")]
        assert f"{scene['final_relative_error']:.1e}" in row and scene["layout"] in row
        assert f"{max(scene['step_relative_errors']):.1e}" in row and "| yes |" in row
    assert "| nothing related |" in text and "## Build" in text
    before = check([NONE], steps=1)
    assert strict_json(engine.folder / "report.json")["verify"] == before != section


@pytest.mark.parametrize(
    "damage",
    ['{"verify": 3, "build": []}', '{"build": {"seconds": 1}}', "[]", "{", "\ufeff", '{"x": 1}'],
)
def test_a_damaged_report_is_replaced(check, engine, damage):
    (engine.folder / "report.json").write_text(damage, encoding="utf-8")
    section = check([NONE], steps=1)
    assert section["passed"]
    assert strict_json(engine.folder / "report.json")["verify"] == section
    assert "Verification: passed" in (engine.folder / "report.md").read_text(encoding="utf-8")


# -- wrong engines ------------------------------------------------------------------------------


def swapped(inputs):
    """The two subjects of two pictures each in each other's place."""
    order = [2, 3, 0, 1]
    return inputs.changed(
        **{name: inputs.tensors[name][:, order] for name in ("references", "template")}
    )


def not_a_number(velocity, call):
    return velocity * math.nan


def late_infinity(velocity, call):
    if call == 2:
        velocity[..., 0, 0] = math.inf
    return velocity


WOMAN = replace(TWO.subjects[0], references=TWO.subjects[0].references[:2])
PAIRS = replace(TWO, background=None, subjects=(WOMAN, TWO.subjects[1]))
FAULTS = {
    "a thousandth too much": (TWO, {"velocity": lambda v, call: v * 1.001}),
    "one step off": (NONE, {"velocity": lambda v, call: v * 1.01 if call == 1 else v}),
    "no words": (
        ONE,
        {"inputs": lambda i: i.changed(template=torch.zeros_like(i.tensors["template"]))},
    ),
    "subjects swapped": (PAIRS, {"inputs": swapped}),
    "another prompt": (NONE, {"inputs": lambda i: i.changed(text=i.tensors["text"].flip(0))}),
    "not a number": (NONE, {"velocity": not_a_number}),
    "not a number, in groups": (TWO, {"velocity": not_a_number}),
    "infinity at the second step": (ONE, {"velocity": late_infinity}),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_wrong_engine_fails(check, engine, fault, kind):
    scene, spoiled = FAULTS[kind]
    assert check([scene])["passed"]
    fault(**spoiled)
    section = check([scene])
    assert section["passed"] is False
    report = strict_json(engine.folder / "report.json")["verify"]
    assert report["passed"] is False and report["scenes"][0]["passed"] is False
    finite = kind[:3] not in ("not", "inf")
    assert report["scenes"][0]["sound"] is finite
    if finite and kind != "no words":  # which weigh little in random weights
        assert report["scenes"][0]["final_relative_error"] > 1e-4
    text = (engine.folder / "report.md").read_text(encoding="utf-8")
    assert "Verification: FAILED" in text and "Verification: passed" not in text
    assert finite or "| NO |" in text


def test_an_engine_without_words_fails(drawn, copied, fault):
    """Where words weigh more than the gate lets through."""
    engine = rt.load(copied(drawn.folder), provider="cpu")
    options = {"size": rt.VideoSize(9, 64, 96), "steps": 2}
    assert verify(engine, [ONE], **options)["passed"]
    fault(inputs=lambda bound: bound.changed(template=torch.zeros_like(bound.tensors["template"])))
    section = verify(engine, [ONE], **options)
    assert section["passed"] is False and section["scenes"][0]["final_relative_error"] > 1e-4
    assert "FAILED" in (engine.folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["a thousandth too much", "not a number, in groups"])
def test_the_command_fails_for_a_wrong_engine(engine, micro_bundle, fault, tmp_path, kind):
    scene, spoiled = FAULTS[kind]
    scene.save(tmp_path / "scene")
    where = ["--checkpoint", str(micro_bundle), "--components", str(micro_bundle)]
    command = ["verify", str(engine.folder), str(tmp_path / "scene"), "--steps", "2"]
    done = CliRunner().invoke(app, command + where + SIZE_OPTIONS)
    assert done.exit_code == 0, done.stderr
    fault(**spoiled)
    done = CliRunner().invoke(app, command + where + SIZE_OPTIONS + ["--json"])
    assert done.exit_code == 1 and "error: " in done.stderr and "report.md" in done.stderr
    assert json.loads(done.stdout)["passed"] is False
    assert strict_json(engine.folder / "report.json")["verify"]["passed"] is False
    assert "FAILED" in (engine.folder / "report.md").read_text(encoding="utf-8")


def test_a_flat_engine_fails(check, engine, monkeypatch):
    """Engine and reference agree, but on nothing."""
    grey = np.full((5, 32, 48, 3), (200, 10, 10), np.uint8)
    monkeypatch.setattr(engine.vae, "decode_frames_uint8", lambda latents: grey)
    section = check([NONE])
    assert section["passed"] is False and section["scenes"][0]["sound"] is False
    assert "| NO |" in (engine.folder / "report.md").read_text(encoding="utf-8")


def test_a_gate_that_lets_the_control_through_proves_nothing(check, monkeypatch):
    controls = runtime.Request.controls
    monkeypatch.setattr(
        runtime.Request,
        "controls",
        lambda self, config: [(wrong, self) for wrong, _ in controls(self, config)],
    )
    section = check([ONE])
    assert section["passed"] is False
    assert section["scenes"][0]["final_relative_error"] < 1e-4
    assert section["scenes"][0]["control_relative_error"] < 1e-4


def test_the_gate_follows_the_precision(engine, micro_bundle, fault):
    fault(velocity=lambda v, call: v * 1.0003)
    options = {"checkpoint": micro_bundle, "size": SIZE, "steps": 3}
    assert not verify(engine, [ONE], **options)["passed"]
    half = rt.Engine(
        engine.folder, replace(engine.manifest, precision="fp16"), engine.backend, micro_bundle
    )
    section = verify(half, [ONE], **options)
    assert section["gate"] == 1e-3
    assert 1e-4 < section["scenes"][0]["final_relative_error"] < 1e-3 and section["passed"]


# -- refusals -----------------------------------------------------------------------------------


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)


def test_other_weights_are_no_reference(check, engine, micro_bundle, tmp_path):
    report = (engine.folder / "report.json").read_bytes()
    config = load_transformer(micro_bundle).config
    save_bundle(tmp_path / "other", transformer=random_transformer(config, 1))
    text = refusal(check, [NONE], checkpoint=tmp_path / "other")
    assert "other weights" in text and "--checkpoint" in text
    assert (engine.folder / "report.json").read_bytes() == report


def test_weights_that_were_moved_have_to_be_named(check, engine, micro_bundle, own_cache):
    text = refusal(check, [NONE], checkpoint=None)
    assert "--checkpoint" in text
    assert check([NONE], steps=1)["passed"]


def test_what_cannot_be_compared_is_refused(check, drawn_engine):
    assert "scene" in refusal(verify, drawn_engine, [])
    assert "steps" in refusal(check, [NONE], steps=0)
    assert "'red hat'" in refusal(check, [NONE, replace(ONE, caption="A woman in a blue coat.")])


def test_a_reference_that_breaks_is_not_blamed_on_the_engine(check, monkeypatch):
    right = EagerBackend.bind

    def bind(self, inputs):
        run = right(self, inputs)
        return lambda latents, time: run(latents, time) * math.nan

    monkeypatch.setattr(EagerBackend, "bind", bind)
    assert "not finite" in refusal(check, [NONE])
    assert OnnxRuntimeBackend.bind is not bind

"""FP8 engines of the micro checkpoint, for every backend: built, told about, compared."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import CALIBRATION, GRAPH, check_files, plan_of, read_manifest
from lumosx_rt.artifact.report import read_report
from lumosx_rt.backends.common.fp8_layers import products_of
from lumosx_rt.backends.tensorrt_rtx import fp8 as fp8_plans
from lumosx_rt.backends.tensorrt_rtx.buckets import BucketedBackend
from lumosx_rt.calibration.calibration_file import read_calibration
from lumosx_rt.export.limits import Limits
from lumosx_rt.export.tensorrt import plan as tensorrt
from lumosx_rt.export.tensorrt.padded_keys import with_slots
from lumosx_rt.export.tensorrt.plan import Fp8, attention_sites
from lumosx_rt.parity.verify import ROUNDED_GATE, verify
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.ops import REFERENCE
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout, layout_of
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import Inputs
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime.describe import describe
from tests.calibration.roundings import WIDE, Program, Roundings
from tests.conftest import built
from tests.helpers.budget import assert_within_budget, in_float64, widened
from tests.helpers.inputs import bound, model_inputs

SIZE = rt.VideoSize(5, 32, 48)
BUCKETS = (2, 4)


@pytest.fixture(scope="module")
def planned(micro_bundle, scales, shared):
    """A plan a bucket (minutes); the graph that they are made of is kept in `fp8-graph`."""
    pytest.importorskip("tensorrt_rtx")
    export = fp8_plans.export_onnx

    def keeping(model, path, **options):
        facts = export(model, path, **options)
        shutil.copytree(path.parent, shared / "fp8-graph", dirs_exist_ok=True)
        return facts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fp8_plans, "export_onnx", keeping)
        return built(
            shared / "fp8-planned",
            micro_bundle,
            backend="tensorrt-rtx",
            precision="fp8",
            calibration=scales,
            buckets=",".join(map(str, BUCKETS)),
            targets="sm_89",
            max_size=SIZE,
        )


@pytest.fixture(scope="module")
def graph(planned, shared):
    return shared / "fp8-graph" / "model.onnx"


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)


# -- onnxruntime ----------------------------------------------------------------------------------


def test_an_engine_holds_its_calibration_and_half_the_bytes(fp8_engine, micro, scales):
    manifest = read_manifest(fp8_engine.folder)
    check_files(fp8_engine.folder, manifest)
    assert (manifest.backend, manifest.precision) == ("onnxruntime", "fp8")
    assert set(manifest.files) == {GRAPH, f"{GRAPH}.data", CALIBRATION}
    assert read_calibration(fp8_engine.folder / CALIBRATION) == read_calibration(scales)
    sizes = [(e.folder / f"{GRAPH}.data").stat().st_size for e in (fp8_engine, micro)]
    table = 1001 * 256 * 4  # of time, which is no weight
    assert sizes[0] - table < 0.6 * (sizes[1] - table)


def test_the_build_looked_into_every_product(fp8_engine):
    build = read_report(fp8_engine.folder)["build"]
    assert build["fp8"]["products"] == 30 and build["fp8"]["worst_product"] < 1e-6
    assert all(1e-3 < c["relative_error"] <= c["gate"] for c in build["parity"])
    told = (fp8_engine.folder / "report.md").read_text("utf-8")
    assert "30 products, each given what really came before it" in told


def test_verify_says_what_is_quantized_and_how_far_it_is(fp8_engine, copied):
    engine = rt.load(copied(fp8_engine.folder), provider="cpu")
    section = verify(engine, builtin_scenes(), size=SIZE, steps=3)
    assert section["fp8"]["passed"]
    assert section["fp8"]["quantized"] == section["fp8"]["sites"] == 24
    for scene in section["scenes"]:
        assert scene["gate"] == ROUNDED_GATE * scene["rounded_relative_error"]
        assert 1e-4 < scene["final_relative_error"] <= scene["gate"]
        # with random weights relations change less than 8 bits do: such a check cannot fail, and
        # does not pass
        control = scene["control_relative_error"]
        assert scene["passed"] == (control is None or control > scene["gate"])
    assert section["scenes"][0]["passed"] and not section["passed"]
    told = (engine.folder / "report.md").read_text("utf-8")
    assert "24 of 24 sites in FP8, calibrated on noise" in told and " dB" in told


def test_verify_fails_where_the_calibration_is_not_the_graphs(fp8_engine, copied):
    """Its file is changed, with all hashes: what the graph holds is something else then."""
    from lumosx_rt.artifact.manifest import record_files

    folder = copied(fp8_engine.folder)
    raw = json.loads((folder / CALIBRATION).read_text())
    site = raw["sites"]["blocks.0.self_attn.o"]
    for operand in site["amax"]:
        site["amax"][operand] = [2 * v for v in site["amax"][operand]]
    site["scales"]["x"] *= 2
    (folder / CALIBRATION).write_text(json.dumps(raw))
    replace(read_manifest(folder), files=record_files(folder)).write(folder)
    engine = rt.load(folder, provider="cpu")
    section = verify(engine, builtin_scenes()[1:2], size=SIZE, steps=2)
    assert not section["passed"] and "blocks.0.self_attn.o: " in section["fp8"]["problem"]
    assert "NOT what was calibrated" in (folder / "report.md").read_text("utf-8")


# -- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "torch", "tensorrt-rtx"])
def test_what_does_not_go_together_is_refused_at_once(
    micro_bundle, scales, tmp_path, monkeypatch, backend
):
    from lumosx_rt.artifact import source

    def load(self):
        raise AssertionError("weights were read")

    monkeypatch.setattr(source.CheckpointSource, "load", load)

    def said(**options) -> str:
        text = refusal(rt.build, micro_bundle, tmp_path / "engine", backend=backend, **options)
        assert not (tmp_path / "engine").exists()
        return text

    assert "lumosx-rt calibrate CHECKPOINT" in said(precision="fp8")
    assert "only fp8 uses it" in said(calibration=scales)
    missing = tmp_path / "none.json"
    assert "none.json" in said(precision="fp8", calibration=missing)
    rows = json.loads(scales.read_text())
    rows["scheme"] = {"weights": "channel", "activations": "row", "smooth_keys": True}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    text = said(precision="fp8", calibration=tmp_path / "rows.json")
    assert "--activations tensor" in text
    (tmp_path / "broken.json").write_text(scales.read_text()[:-9])
    assert "broken.json" in said(precision="fp8", calibration=tmp_path / "broken.json")


def test_a_calibration_of_other_weights_is_refused_before_the_export(
    micro_bundle, scales, tmp_path, exporter
):
    raw = json.loads(scales.read_text())
    raw["checkpoint"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(raw))
    options = {"precision": "fp8", "calibration": tmp_path / "other.json"}
    said = refusal(rt.build, micro_bundle, tmp_path / "engine", **options)
    assert "sha256 000000000000" in said and "calibrate this checkpoint anew" in said
    assert exporter.started == 0 and not (tmp_path / "engine").exists()


def test_another_calibration_is_another_engine(micro_bundle, scales, fp8_engine, copied, tmp_path):
    folder = copied(fp8_engine.folder)
    lines = []
    options = {"precision": "fp8", "report": lines.append}
    rt.build(micro_bundle, folder, calibration=scales, **options)
    assert "up to date" in lines[-1]
    raw = json.loads(scales.read_text())
    raw["sites"]["blocks.0.cross"]["kept"] = "by hand"
    (tmp_path / "fewer.json").write_text(json.dumps(raw))
    said = refusal(rt.build, micro_bundle, folder, calibration=tmp_path / "fewer.json", **options)
    assert "other inputs" in said


# -- torch ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_package_is_compiled_from(micro_bundle, scales):
    """The traced program, run as it is: scales are in it, and it serves other shapes."""
    from lumosx_rt.calibration.apply.graph import carried
    from lumosx_rt.export.onnx.ops import PACKAGE_OPS
    from lumosx_rt.export.program import trace
    from lumosx_rt.kernels.qdq import PLAIN
    from tests.helpers.inputs import feed_of

    model, document = load_transformer(micro_bundle), read_calibration(scales)
    with carried(model, document, PLAIN, PACKAGE_OPS) as ops:
        program = trace(model, ops).module()
    layouts = [SceneLayout.from_key(key) for key in ("2x3x5+2+2.3", "2x3x5+3+2.2")]
    given = model_inputs(model.config, layouts, 2, seed=2)
    roundings, double = Roundings(), in_float64(model)
    with document.simulation(model).running(document.quantized), roundings.noted():
        simulated = model(*given)
    with roundings.again() as put_right:
        velocity = Program(program, put_right).run(*feed_of(given).values())
    with (
        roundings.again() as put_right,
        carried(double, document, put_right.wrapped(WIDE), REFERENCE) as double.ops,
    ):
        exact = double(*widened(given))
    assert_within_budget("velocity", velocity, simulated, exact)
    assert relative_error(velocity, model(*given)) > 1e-3


@pytest.mark.slow
def test_a_package_in_fp8(micro_bundle, scales, shared):
    options = {"backend": "torch", "device": "cpu", "precision": "fp8", "calibration": scales}
    package = built(shared / "fp8-package", micro_bundle, **options)
    parity = read_report(package.folder)["build"]["parity"]
    assert all(1e-3 < c["relative_error"] <= c["gate"] for c in parity)
    engine = rt.load(package.folder)
    section = verify(engine, builtin_scenes()[:1], size=SIZE, steps=2)
    assert section["passed"] and section["fp8"]["quantized"] == 24


# -- tensorrt-rtx ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_becomes_a_plan_for_each_bucket(planned):
    manifest = read_manifest(planned.folder)
    check_files(planned.folder, manifest)
    assert set(manifest.files) == {*map(plan_of, BUCKETS), CALIBRATION}
    assert manifest.layouts == Limits.exactly((2, 2, 3), max_references=4, max_seeds=4).table()
    assert manifest.layouts["frames"] == [2, 2] and manifest.layouts["references"] == [0, 4]
    build = read_report(planned.folder)["build"]
    assert set(build["buckets"]) == {"2", "4"}
    for plan in build["buckets"].values():
        assert plan["layers"]["attention"] == {
            "self.video": {"BFloat16 FP8": 2},
            "self.groups": {"BFloat16": 1},
            "cross.video": {"BFloat16": 2},
            "cross.references": {"BFloat16": 1},
        }
        assert plan["layers"]["products"]["FP8"] == 30 and plan["bytes"] > 1 << 20
    assert build["fp8"]["products"] == 30 and build["fp8"]["worst_product"] < 1e-6
    shown = describe(planned.folder, SIZE)
    assert shown["buckets"] == build["buckets"]
    told = (planned.folder / "report.md").read_text("utf-8")
    assert "| references up to | plan, MiB | 8-bit products | 8-bit attention |" in told
    assert "| 30 | 2 |" in told


@pytest.mark.slow
def test_slots_beyond_the_keys_change_nothing_and_missing_ones_do(graph, micro_bundle, tmp_path):
    model = load_transformer(micro_bundle)
    given = model_inputs(model.config, [SceneLayout.from_key("2x2x3+1+2.1")], 2, seed=3)
    latents, time, text, references, template, structure = given
    inputs = bound(text, references, template, structure, latents.shape)
    folder = shutil.copytree(graph.parent, tmp_path / "graph")

    def velocity(slots: int) -> torch.Tensor:
        path = folder / f"slots{slots}.onnx"
        with_slots(folder / "model.onnx", path, torch.arange(slots))
        return fp8_plans.widened(path).bind(inputs)(latents, int(time[0])).clone()

    keys = (2 + 4) * 6
    right = velocity(keys)
    assert torch.allclose(velocity(keys + 5), right, rtol=0, atol=2e-5)
    assert relative_error(velocity(keys - 6), right) > 1e-3
    reference = EagerBackend(model).bind(inputs)(latents, int(time[0]))
    assert 1e-3 < relative_error(right, reference) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["softmax", "product"])
def test_a_plan_without_its_8_bits_is_refused(graph, tmp_path, monkeypatch, fault):
    trt = pytest.importorskip("tensorrt_rtx")
    products = products_of(graph)
    if fault == "softmax":
        monkeypatch.setattr(tensorrt, "_quantize_softmax", lambda trt, network, layer: None)
    else:
        products["node_Gemm_1"] = "blocks.9.ffn.2"
    sites = attention_sites(2)
    said = refusal(
        tensorrt.build_plan,
        trt,
        graph,
        tmp_path / "model.plan",
        sites=sites,
        precision="bf16",
        limits=Limits.exactly((2, 2, 3), max_references=4, max_seeds=4),
        targets=("sm_89",),
        fp8=Fp8([s for s in sites if s.endswith("self.video")], products),
    )
    wanted = {
        "softmax": "blocks.0.self.video reads 0 operands in FP8, not three",
        "product": "blocks.9.ffn.2 (node_Gemm_1) is no product in FP8",
    }
    assert wanted[fault] in said and not (tmp_path / "model.plan").exists()


# -- buckets --------------------------------------------------------------------------------------


class Plan:
    """A plan's double: says which one was asked."""

    def __init__(self, name: str, loaded: list[str]) -> None:
        loaded.append(name)
        self.name = name

    def bind(self, inputs):
        return lambda latents, time: self.name

    def describe(self):
        return {"backend": self.name}


def asked(references: int) -> Inputs:
    empty = torch.zeros(1, references, 1, 1, 1)
    return bound(empty, empty, empty, None, (1,))


def test_a_call_goes_to_the_first_plan_that_it_fits_in():
    loaded: list[str] = []
    plans = {n: (lambda n=n: Plan(f"plan {n}", loaded)) for n in (16, 4)}
    backend = BucketedBackend(plans)
    assert loaded == ["plan 4"]
    went = [backend.bind(asked(n))(None, 0) for n in (0, 4, 3)]
    assert went == ["plan 4"] * 3 and loaded == ["plan 4"]
    assert [backend.bind(asked(n))(None, 0) for n in (5, 16, 5)] == ["plan 16"] * 3
    assert loaded == ["plan 4", "plan 16"]
    assert backend.describe() == {"backend": "plan 4", "buckets": "4, 16"}
    assert "got 17" in refusal(backend.bind, asked(17))
    assert "--buckets 4,16,17" in refusal(backend.bind, asked(17))


@pytest.mark.slow
def test_a_scene_beyond_the_last_bucket_is_refused(planned, micro_bundle):
    from lumosx_rt.runtime.engine import Engine

    engine = Engine(planned.folder, read_manifest(planned.folder), None, micro_bundle)
    scene = replace(builtin_scenes()[2], name="crowd")
    assert layout_of(scene, SIZE.grid).references == 6
    assert "6" in refusal(engine.prepare, scene, size=SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["missing", "strange"])
def test_every_plan_has_to_be_there_and_made_here(planned, copied, own_cache, monkeypatch, fault):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    from lumosx_rt.artifact.user_cache import note_compiled
    from lumosx_rt.backends.tensorrt_rtx.checks import check_plan

    folder = copied(planned.folder)
    manifest = read_manifest(folder)
    first, last = (manifest.files[plan_of(n)].sha256 for n in BUCKETS)
    note_compiled(first)
    if fault == "missing":
        (folder / plan_of(4)).unlink()
        assert "no transformer/model-4.plan" in refusal(check_plan, folder, manifest, trust=True)
    else:
        said = refusal(check_plan, folder, manifest, trust=False)
        assert "model-4.plan holds compiled code" in said
        note_compiled(last)
        check_plan(folder, manifest, trust=False)

"""Builds: whole or not at all, finished stages found again, and wrong graphs never kept."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import check_files, read_manifest
from lumosx_rt.artifact.report import read_report
from lumosx_rt.artifact.source import random_transformer, source_of
from lumosx_rt.reference.backbones.config import PRESETS, LumosXConfig
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.checkpoints.bundle import find_bundle
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.sampling.inputs import INPUTS
from lumosx_rt.reference.scenes.builtin import builtin_scenes

SIZE = rt.VideoSize(5, 32, 48)


class Killed(BaseException):
    """What stops a build here, like Ctrl-C."""


def stop_at(number: int):
    """A report that raises at line `number`."""
    left = iter(range(number))

    def report(line: str) -> None:
        if next(left, None) is None:
            raise Killed(line)

    return report


def stop_at_check(line: str) -> None:
    if line.startswith("checking"):
        raise Killed(line)


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files but the reports, which have times."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stem != "report"
    }


def refusal(*args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        rt.build(*args, **options)
    return str(found.value)


# -- what comes out -----------------------------------------------------------------------------


def test_a_preset_becomes_a_self_contained_engine(drawn):
    manifest = read_manifest(drawn.folder)
    check_files(drawn.folder, manifest)
    assert manifest.model == PRESETS["tiny"].__dict__
    assert manifest.checkpoint["source"] == "random" and manifest.precision == "fp32"
    assert manifest.layouts["references"] == [0, 16] and manifest.layouts["frames"] == [1, 1024]
    assert set(manifest.components) == {"text_encoder", "tokenizer", "vae"}
    assert {path.split("/")[0] for path in manifest.files} == {"transformer", "components"}
    assert drawn.printed == ""
    assert not [p.name for p in drawn.folder.parent.iterdir() if ".drawn." in p.name]


def test_a_checkpoint_becomes_an_engine_without_its_encoders(micro, micro_bundle):
    manifest = read_manifest(micro.folder)
    assert set(manifest.files) == {"transformer/model.onnx", "transformer/model.onnx.data"}
    assert manifest.checkpoint["source"] == "bundle" and manifest.checkpoint["kind"] == "diffusers"
    assert manifest.model["dim"] == 48 and manifest.model["num_layers"] == 2
    assert manifest.checkpoint["sha256"] == find_bundle(micro_bundle).sha256["transformer"]
    assert manifest.components == {
        name: digest
        for name, digest in find_bundle(micro_bundle).sha256.items()
        if name != "transformer"
    }


@pytest.mark.parametrize("which", ["drawn", "micro"])
def test_the_report_says_how_it_was_built(request, which):
    folder = request.getfixturevalue(which).folder
    build = read_report(folder)["build"]
    assert build["opset"] == 23 and build["seconds"] > 0 and build["operators"]["MatMul"] > 0
    assert build["peak_memory_bytes"] > 100 << 20
    cases = build["parity"]
    # no references; one group; several seeds; unequal groups in two streams
    assert any("+0+-" in c["layout"] for c in cases) and {c["seeds"] for c in cases} == {1, 2}
    assert {c["streams"] for c in cases} == {1, 2}
    assert all(0 < c["relative_error"] < 1e-5 for c in cases)
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert all(f"{c['relative_error']:.1e}" in text for c in cases)


def test_nothing_in_an_engine_names_the_machine(drawn, micro, shared):
    from tests.conftest import HOST

    words = {str(shared), str(Path.home()) + "/", str(Path(rt.__file__).parents[1]), HOST}
    for engine in (drawn.folder, micro.folder):
        for path in engine.rglob("*"):
            data = path.read_bytes() if path.is_file() else b""
            assert not [word for word in words if word.encode() in data], path
        text = (engine / "manifest.json").read_text(encoding="utf-8")
        assert not [s for s in text.split('"') if re.match(r"/|\w:\\|file:|~", s)]


@pytest.mark.slow
def test_half_precision_takes_half_the_bytes_within_its_gate(tmp_path):
    config = LumosXConfig(dim=96, ffn_dim=192, num_heads=2, num_layers=1, text_dim=64, text_len=256)
    save_bundle(tmp_path / "one", transformer=random_transformer(config, 1))
    folder = rt.build(tmp_path / "one", tmp_path / "half", precision="fp16")
    full = 4 * sum(p.numel() for p in load_transformer(tmp_path / "one").parameters())
    table = 4 * 1001 * config.freq_dim
    stored = (folder / "transformer" / "model.onnx.data").stat().st_size
    assert 0.5 * full < stored - table < 0.53 * full  # the time table is no weight
    errors = [case["relative_error"] for case in read_report(folder)["build"]["parity"]]
    assert 1e-5 < max(errors) <= 1e-3
    assert read_manifest(folder).precision == "fp16"


# -- whole or not at all ------------------------------------------------------------------------


def test_a_build_stopped_anywhere_leaves_nothing_and_goes_on_later(
    micro_bundle, exporter, tmp_path, own_cache
):
    lines: list[str] = []
    rt.build(micro_bundle, tmp_path / "whole", report=lines.append)
    expected = contents(tmp_path / "whole")
    assert len(lines) >= 8 and exporter.finished == 1
    for number, line in enumerate(lines[:-1]):
        exporter.finished = 0
        out = tmp_path / f"engine{number}"
        with pytest.raises(Killed, match=re.escape(line)):
            rt.build(micro_bundle, out, report=stop_at(number))
        assert not out.exists()
        rt.build(micro_bundle, out)
        assert exporter.finished == 1, line  # a finished export is not repeated
        check_files(out, read_manifest(out))
        assert contents(out) == expected
        assert [p.name for p in tmp_path.iterdir() if f".{out.name}." in p.name] == []


@pytest.mark.parametrize("step", ["write_report", "put_in_place"])
def test_a_build_stopped_at_the_very_end_does_not_export_again(
    micro_bundle, exporter, tmp_path, monkeypatch, step
):
    from lumosx_rt.builder import build as builder

    def killed(*args, **options):
        raise Killed(step)

    with monkeypatch.context() as on:
        on.setattr(builder, step, killed)
        with pytest.raises(Killed):
            rt.build(micro_bundle, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
    rt.build(micro_bundle, tmp_path / "engine")
    check_files(tmp_path / "engine", read_manifest(tmp_path / "engine"))
    assert exporter.finished == 1


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
import lumosx_rt as rt
from lumosx_rt.export.onnx import graph
from tests.conftest import Replay
from pathlib import Path

graph.export_onnx = Replay(Path(sys.argv[3]))

def report(line):
    if line.startswith("checking"):
        os.kill(os.getpid(), signal.SIGKILL)

rt.build(sys.argv[1], sys.argv[2], report=report)
"""


def test_a_killed_process_leaves_nothing_and_its_export_is_found(
    micro_bundle, micro, exporter, tmp_path
):
    out = tmp_path / "engine"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", KILLED, *map(str, (micro_bundle, out, micro.folder, root))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists() and list(tmp_path.iterdir())
    rt.build(micro_bundle, out)
    assert exporter.started == 0
    check_files(out, read_manifest(out))
    assert os.listdir(tmp_path) == ["engine"]


@pytest.mark.parametrize("change", ["damage", "other inputs"])
def test_a_stage_that_does_not_fit_is_not_found_again(micro_bundle, exporter, tmp_path, change):
    out = tmp_path / "engine"
    with pytest.raises(Killed):
        rt.build(micro_bundle, out, report=stop_at_check)
    exporter.finished = 0
    if change == "damage":
        (weights,) = tmp_path.glob(".engine*/transformer/model.onnx.data")
        content = bytearray(weights.read_bytes())
        content[1000] ^= 1
        weights.write_bytes(content)
        rt.build(micro_bundle, out)
    else:
        rt.build(micro_bundle, out, max_references=3)
    assert exporter.finished == 1
    check_files(out, read_manifest(out))


def one_percent_off(path: Path) -> None:
    """One matrix of the middle."""
    model = onnx.load(path)
    matrices = [t for t in model.graph.initializer if list(t.dims) in ([48, 96], [96, 48])]
    wrong = numpy_helper.from_array(numpy_helper.to_array(matrices[0]) * 1.01, matrices[0].name)
    matrices[0].CopyFrom(wrong)
    path.with_name("model.onnx.data").unlink()
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")


def blind_to(name: str):
    """Take an input's influence away: it is multiplied by nothing, and a mask hides nothing."""

    def spoil(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        (given,) = [value for value in model.graph.input if value.name == name]
        kind = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        operator, value = ("Or", True) if kind == np.bool_ else ("Mul", 0)
        for node in model.graph.node:
            node.input[:] = ["nothing" if user == name else user for user in node.input]
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), "constant"))
        first = onnx.helper.make_node(operator, [name, "constant"], ["nothing"])
        model.graph.node.insert(0, first)
        onnx.save(model, path)

    return spoil


QUICK = ("latents", "template", "group_index", "group_mask")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(one_percent_off, id="a weight"),
        *(
            pytest.param(blind_to(name), id=name, marks=[] if name in QUICK else pytest.mark.slow)
            for name in INPUTS
        ),
    ],
)
def test_a_wrong_graph_is_never_kept(micro_bundle, exporter, tmp_path, spoil):
    out = tmp_path / "engine"
    exporter.spoil = spoil
    text = refusal(micro_bundle, out)
    assert "differs from the reference" in text and "fp32" in text
    assert not out.exists()
    exporter.spoil = lambda path: None
    rt.build(micro_bundle, out)  # a mended exporter is used, the wrong graph is not found again
    before = contents(out)
    exporter.spoil = spoil
    refusal(micro_bundle, out, max_references=3, force=True)
    assert contents(out) == before


def test_a_full_disk_is_noticed_before_the_export(micro_bundle, exporter, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 5 << 20))
    text = refusal(micro_bundle, tmp_path / "deep" / "engine")
    assert "5 MiB free" in text and str(tmp_path) in text
    assert exporter.started == 0 and not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_refusal(micro_bundle, exporter, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refusal(micro_bundle, tmp_path / "file" / "engine")
    assert (tmp_path / "file").read_text() == "" and exporter.started == 0


# -- what stands there already ------------------------------------------------------------------


def test_an_engine_that_is_up_to_date_is_left_alone(micro_bundle, micro, exporter, copied):
    engine = copied(micro.folder)
    times = {path: path.stat().st_mtime_ns for path in engine.rglob("*")}
    lines: list[str] = []
    assert rt.build(micro_bundle, engine, report=lines.append) == engine
    assert "up to date" in lines[-1] and exporter.started == 0
    assert {path: path.stat().st_mtime_ns for path in engine.rglob("*")} == times


def test_an_engine_of_other_inputs_is_replaced_only_by_force(
    micro_bundle, micro, exporter, copied, tmp_path
):
    engine = copied(micro.folder)
    before = contents(engine)
    text = refusal(micro_bundle, engine, max_references=4)
    assert "--force" in text and contents(engine) == before and exporter.started == 0
    (engine / "transformer" / "leftover").write_text("of the old engine")
    rt.build(micro_bundle, engine, max_references=4, force=True)
    assert read_manifest(engine).layouts["references"] == [0, 4]
    assert read_manifest(engine).layouts["members"] == [1, 4]
    check_files(engine, read_manifest(engine))
    assert os.listdir(tmp_path) == [engine.name]


def test_a_damaged_engine_is_not_up_to_date(micro_bundle, micro, exporter, copied):
    engine = copied(micro.folder)
    (engine / "transformer" / "model.onnx").write_bytes(b"")
    text = refusal(micro_bundle, engine)
    assert "--force" in text and "other inputs" not in text
    rt.build(micro_bundle, engine, force=True)
    check_files(engine, read_manifest(engine))


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_engine_is_never_replaced(micro_bundle, exporter, tmp_path, force):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").write_text("dear")
    (tmp_path / "notes").write_text("dear")
    for name in ("photos", "notes"):
        assert name in refusal(micro_bundle, tmp_path / name, force=force)
    assert (tmp_path / "photos" / "dear.jpg").read_text() == "dear"
    assert (tmp_path / "notes").read_text() == "dear"
    assert sorted(os.listdir(tmp_path)) == ["notes", "photos"] and exporter.started == 0


def test_the_folder_one_stands_in_can_be_built(micro_bundle, micro, exporter, copied, monkeypatch):
    engine = copied(micro.folder)
    monkeypatch.chdir(engine)
    rt.build(micro_bundle, ".", max_references=4, force=True)
    assert read_manifest(engine).layouts["references"] == [0, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "tensorrt-llm"},
        {"precision": "fp4"},
        {"precision": "bf16"},
        {"opset": 22},
        {"device": "tpu"},
        {"device": "cuda"},
        {"max_references": 0},
        {"max_references": 65},
        {"preset": "huge"},
        {"preset": None},
    ],
    ids=str,
)
def test_wrong_requests_are_refused_at_once(exporter, tmp_path, wrong):
    ((name, value),) = wrong.items()
    text = refusal(None, tmp_path / "engine", **{"preset": "tiny"} | wrong)
    assert name in text and (value is None or str(value) in text)
    assert exporter.started == 0 and not list(tmp_path.iterdir())


def test_a_checkpoint_and_a_preset_exclude_each_other(micro_bundle, tmp_path):
    assert "either" in refusal(micro_bundle, tmp_path / "engine", preset="tiny")


# -- the encoders -------------------------------------------------------------------------------


def frames_of(engine: rt.Engine):
    return engine.generate(builtin_scenes()[2], size=SIZE, steps=2)[0].frames


def test_a_self_contained_engine_needs_nothing_else(
    micro_bundle, micro, exporter, copied, tmp_path, own_cache
):
    expected = frames_of(rt.load(micro.folder, components=micro_bundle))
    bundle = copied(micro_bundle)
    folder = rt.build(bundle, tmp_path / "engine", self_contained=True)
    shutil.rmtree(bundle)
    shutil.rmtree(own_cache)
    assert set(read_manifest(folder).components) == {"text_encoder", "tokenizer", "vae"}
    assert (frames_of(rt.load(folder)) == expected).all()


def test_an_engine_finds_the_encoders_that_lie_beside_its_checkpoint(
    micro_bundle, exporter, tmp_path, own_cache
):
    engine = rt.load(rt.build(micro_bundle, tmp_path / "engine"), provider="cpu")
    assert engine.components.root == micro_bundle
    assert source_of(engine.manifest, None).bundle.root == micro_bundle


def test_a_checkpoint_without_encoders_cannot_be_self_contained(
    micro_bundle, exporter, copied, tmp_path, own_cache
):
    bundle = copied(micro_bundle)
    shutil.rmtree(bundle / "vae")
    text = refusal(bundle, tmp_path / "engine", self_contained=True)
    assert "vae" in text and "tokenizer" not in text.replace(str(bundle), "")
    assert exporter.started == 0 and not (tmp_path / "engine").exists()


def test_the_sizes_can_be_said_where_a_checkpoint_does_not(
    micro_bundle, exporter, copied, tmp_path, own_cache
):
    bundle = copied(micro_bundle)
    about = json.loads((bundle / "transformer" / "config.json").read_text())
    (bundle / "transformer" / "config.json").unlink()
    config = load_transformer(micro_bundle).config
    folder = rt.build(bundle, tmp_path / "engine", config=config)
    assert read_manifest(folder).model["num_heads"] == about["num_attention_heads"] == 3

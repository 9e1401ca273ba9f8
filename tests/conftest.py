"""Shared by all tests: a cache of their own, one thread, and five engines that are built once.

    micro     two layers of 48 channels, built from a bundle with a text encoder, tokenizer and VAE
    drawn     the same weights, as `build` draws them for the preset tiny, which is as small here
    compiled  the same checkpoint for the backend torch, on a CPU
    planned   the same checkpoint for the backend tensorrt-rtx, which only a GPU could run
    fp8_engine    the same checkpoint for onnxruntime in FP8, by `scales` observed on noise

Tests that damage an engine damage a copy (`copied`).
"""

import fcntl
import gc
import io
import itertools
import json
import os
import platform
import shutil
import socket
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; set before any of them is imported

LONGEST = (  # modules, so that no worker is left with one of them at the end
    "test_fp8_engines", "test_package", "test_opaque_nodes", "test_build", "test_engine",
    "test_relational_attention", "test_graph", "test_course", "test_loop", "test_fused",
    "test_relational_cross_attention", "test_operator", "test_sources",
    "test_kernels", "test_hostile_checkpoints", "test_judge", "test_rows", "test_wheel",
)  # fmt: skip
HOST = "unmistakable-host-name"  # what the machine is called while engines are built


@dataclass(frozen=True)
class Built:
    """An engine folder, and what `build` said on the way."""

    folder: Path
    lines: list[str]
    """What it reported."""
    printed: str
    """What reached stdout: nothing, it belongs to results."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder of this run of the tests; workers of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def surroundings(shared):
    """Nothing of the user's is read or written, and the other cores are left alone."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    from lumosx_rt.reference.backbones.config import PRESETS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", micro_config())
        patch.setenv("LUMOSX_CACHE", str(shared / "cache"))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setenv("OMP_NUM_THREADS", "1")
        gc.collect()
        gc.freeze()  # the libraries, which are large and stay, are not looked through again
        yield
        gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache for one test, so that what it remembers misleads no other."""
    monkeypatch.setenv("LUMOSX_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


def pytest_collection_modifyitems(items):
    """The longest modules first; pytest-xdist hands them out in this order."""
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


# -- engines ------------------------------------------------------------------------------------


@contextmanager
def one_at_a_time(lock: Path):
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def built(folder: Path, checkpoint: Path | None, **options) -> Built:
    import lumosx_rt as rt
    from tests.helpers.tracing import in_less_time

    lines: list[str] = []
    told = folder.with_name(f"{folder.name}.told.json")
    lock = folder.with_name(f"{folder.name}.lock")
    with one_at_a_time(lock), pytest.MonkeyPatch.context() as on, in_less_time():
        if told.exists():  # by another worker
            return Built(folder, *json.loads(told.read_text()))
        on.setattr(platform, "node", lambda: HOST)
        on.setattr(socket, "gethostname", lambda: HOST)
        with redirect_stdout(io.StringIO()) as printed:
            rt.build(checkpoint, folder, report=lines.append, **options)
        told.write_text(json.dumps([lines, printed.getvalue()]))
    return Built(folder, lines, printed.getvalue())


def micro_config():
    """Two layers, and words so loud that to lose them shows in random weights too."""
    from lumosx_rt.reference.backbones.config import LumosXConfig

    sizes = {"dim": 48, "ffn_dim": 96, "num_heads": 3, "num_layers": 2}
    return LumosXConfig(**sizes, text_dim=64, text_len=256, mcam_ratio=8.0)


@pytest.fixture(scope="session")
def micro_bundle(surroundings, shared):
    """A checkpoint in diffusers folders, of all four parts."""
    from lumosx_rt.artifact.defaults import SMALL
    from lumosx_rt.artifact.source import random_transformer
    from lumosx_rt.reference.backbones.saving import save_bundle
    from lumosx_rt.reference.encoders.random import random_components

    folder, config = shared / "micro-bundle", micro_config()
    with one_at_a_time(folder.with_name("micro-bundle.lock")):
        if not folder.exists():
            text_encoder, tokenizer, vae = random_components(0)
            save_bundle(
                folder,
                transformer=random_transformer(config, 0),
                vae=vae,
                text_encoder=text_encoder,
                tokenizer=tokenizer,
                defaults=SMALL,
            )
    return folder


@pytest.fixture(scope="session")
def micro(micro_bundle, shared):
    """The build of the micro checkpoint; the encoders stay where the checkpoint lies."""
    return built(shared / "micro", micro_bundle)


@pytest.fixture(scope="session")
def micro_engine(micro):
    import lumosx_rt as rt

    return rt.load(micro.folder, provider="cpu")


@pytest.fixture(scope="session")
def drawn(micro, shared):
    """The build of the preset tiny: self-contained, the same random weights; not exported again,
    and compared with the reference as every build is."""
    from lumosx_rt.export.onnx import graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "export_onnx", Replay(micro.folder))
        return built(shared / "drawn", None, preset="tiny")


@pytest.fixture(scope="session")
def drawn_engine(drawn):
    import lumosx_rt as rt

    return rt.load(drawn.folder, provider="cpu")


@pytest.fixture(scope="session")
def compiled(micro_bundle, shared):
    """The micro checkpoint, compiled; a compiler takes most of a minute for it."""
    return built(shared / "compiled", micro_bundle, backend="torch", device="cpu")


@pytest.fixture(scope="session")
def compiled_engine(compiled):
    import lumosx_rt as rt

    return rt.load(compiled.folder)


@pytest.fixture(scope="session")
def planned(micro_bundle, shared):
    """The micro checkpoint as a plan. The graph that it is made of is kept in `plan-graph`."""
    pytest.importorskip("tensorrt_rtx")
    from lumosx_rt.export.onnx import graph

    export = graph.export_onnx

    def keeping(model, path, **options):
        facts = export(model, path, **options)
        shutil.copytree(path.parent, shared / "plan-graph", dirs_exist_ok=True)
        return facts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "export_onnx", keeping)
        return built(shared / "planned", micro_bundle, backend="tensorrt-rtx")


@pytest.fixture(scope="session")
def plan_graph(planned, shared):
    return shared / "plan-graph" / "model.onnx"


@pytest.fixture(scope="session")
def scales(micro_bundle, shared):
    """A calibration of the micro checkpoint, as a file."""
    from lumosx_rt.calibration.noise import noise_calibration
    from lumosx_rt.reference.backbones.loading import load_transformer
    from lumosx_rt.reference.checkpoints.bundle import find_bundle

    path = shared / "scales.json"
    with one_at_a_time(path.with_suffix(".lock")):
        if not path.exists():
            digest = find_bundle(micro_bundle).require("transformer").sha256
            noise_calibration(load_transformer(micro_bundle), digest).write(path)
    return path


@pytest.fixture(scope="session")
def fp8_engine(micro_bundle, scales, shared):
    return built(shared / "fp8", micro_bundle, precision="fp8", calibration=scales)


@pytest.fixture
def copied(tmp_path):
    """`copied(folder)`: a copy of an engine or a checkpoint that may be damaged."""
    count = itertools.count(1)

    def copy(folder: Path) -> Path:
        return shutil.copytree(folder, tmp_path / f"{folder.name}-copy{next(count)}")

    return copy


# -- faults -------------------------------------------------------------------------------------


class Replay:
    """The exporter's double: reports the same stages, writes the micro engine's graph, counts."""

    STAGES = ("tracing the model", "translating to ONNX", "simplifying the graph")

    def __init__(self, engine: Path) -> None:
        self.graph = engine / "transformer"
        self.facts = json.loads((engine / "report.json").read_text())["build"]
        self.started = self.finished = 0
        self.spoil = lambda folder: None

    def __call__(self, model, path, *, report, **options):
        self.started += 1
        for stage in self.STAGES:
            report(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.parent / f"half{self.started}.data"
        half.write_bytes(b"half")
        report("writing weights")
        half.unlink()
        for file in self.graph.iterdir():
            shutil.copy(file, path.parent)
        self.spoil(path)
        self.finished += 1
        names = ("operators", "half_precision_matrices")
        return {name: self.facts[name] for name in names} | {"opset": options["opset"]}


@pytest.fixture
def exporter(micro, monkeypatch):
    """Builds of the micro checkpoint take seconds: its graph is not exported again."""
    from lumosx_rt.export.onnx import graph

    replay = Replay(micro.folder)
    monkeypatch.setattr(graph, "export_onnx", replay)
    return replay


@pytest.fixture
def fault(monkeypatch):
    """Breaks every engine: `inputs` changes what it is bound to, `velocity` what a call returns.

    velocity: of (velocity, number of the call, counted from 1). Returns the number of calls.
    """
    from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend

    right = OnnxRuntimeBackend.bind

    def install(inputs=lambda bound: bound, velocity=lambda value, call: value):
        calls: list[int] = []

        def bind(self, bound):
            run, first = right(self, inputs(bound)), len(calls)

            def denoise(latents, time):
                calls.append(time)
                return velocity(run(latents, time), len(calls) - first)

            return denoise

        monkeypatch.setattr(OnnxRuntimeBackend, "bind", bind)
        return calls

    return install


# -- the command line ---------------------------------------------------------------------------


@pytest.fixture
def run():
    """`run(*words, code=0)`: a command in this process; its exit code is checked."""
    from typer.testing import CliRunner

    from lumosx_rt.cli.main import app

    def run_here(*words, code: int = 0):
        done = CliRunner().invoke(app, [str(word) for word in words])
        told = f"{done.stdout}\n--\n{done.stderr}\n--\n{done.exception!r}"
        assert done.exit_code == code and isinstance(done.exception, SystemExit | None), told
        assert "Traceback" not in done.stderr
        return done

    return run_here


@pytest.fixture
def scenes(tmp_path):
    """A folder of prompt folders: two good ones, and a bad one between them."""
    from lumosx_rt.reference.scenes.builtin import builtin_scenes

    _, one, two = builtin_scenes()
    root = tmp_path / "scenes"
    one.save(root / "a")
    one.save(root / "b-bad")
    (root / "b-bad" / "caption.txt").write_text("bad;A woman with a red hat.")
    two.save(root / "c")
    for path in root.rglob("scene.toml"):
        path.unlink()
    (root / "notes").mkdir()
    (root / "readme.txt").write_text("no scene")
    return root

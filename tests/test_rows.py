"""A backend, a mechanism, a number format, a schedule, a command: each is one row in one table."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import read_manifest
from lumosx_rt.artifact.versions import versions
from lumosx_rt.backends.common.room import BackendRoom, LoadRequest
from lumosx_rt.backends.table import BACKENDS
from lumosx_rt.calibration.formats import FORMATS, Format
from lumosx_rt.cli.main import COMMANDS, program
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.mechanism import LUMOSX
from lumosx_rt.reference.mechanisms.mechanism import Branch
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import MECHANISMS
from lumosx_rt.reference.sampling.schedules import SCHEDULES, Schedule
from lumosx_rt.reference.scenes.builtin import builtin_scenes

WEIGHTS = "transformer/model.safetensors"
SIZE = rt.VideoSize(5, 32, 48)


# -- a backend that keeps the weights as they are and runs them in PyTorch -------------------------


@dataclass(frozen=True, kw_only=True)
class PlainOptions:
    precision: str = "fp32"
    scale: float = 1.0
    """Of the head's weights: 1 is right."""


@dataclass(frozen=True)
class PlainCompiler:
    precision: str
    scale: float
    document = None
    backend = "plain"
    files = (WEIGHTS,)
    provider = "cpu"
    device = {"name": "any"}
    bytes_per_parameter = 4
    remedy = "Try scale 1"

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": self.scale}

    @property
    def versions(self) -> dict[str, str]:
        return versions()

    def limits(self, defaults: dict[str, Any], max_references: int) -> Limits:
        return Limits.any_size(max_references)

    def compile(self, model: LumosX, engine: Path, limits: Limits, report: Any) -> dict[str, Any]:
        tensors = {name: x.clone().contiguous() for name, x in model.state_dict().items()}
        tensors["head.head.weight"] *= self.scale
        (engine / WEIGHTS).parent.mkdir(parents=True)
        save_file(tensors, engine / WEIGHTS)
        return {}

    def vouches_for(self, engine: Path) -> bool:
        return True


def load(request: LoadRequest) -> EagerBackend:
    model = LumosX(LumosXConfig.from_dict(request.manifest.model))
    model.load_state_dict(load_file(request.folder / WEIGHTS))
    return EagerBackend(model)


PLAIN = BackendRoom(
    name="plain",
    options=PlainOptions,
    compiler=lambda options, random: PlainCompiler(options.precision, options.scale),
    load=load,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An engine of the dummy backend in a dummy number format."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "plain", PLAIN)
        row = Format(name="fp32x", weight_bytes=4, number_bytes=4, gate=1e-4, forward_gate=1e-5)
        patch.setitem(FORMATS, "fp32x", row)
        folder = tmp_path_factory.mktemp("rows") / "engine"
        rt.build(None, folder, preset="tiny", backend="plain", precision="fp32x")
        with pytest.raises(LumosXError, match="differs from the reference"):
            rt.build(None, folder.with_name("wrong"), preset="tiny", backend="plain", scale=1.1)
        yield rt.load(folder, unverified=True)


def latents(engine: rt.Engine, **settings: Any) -> torch.Tensor:
    scene = builtin_scenes()[1]
    *_, state = engine.sample(engine.prepare(scene, size=SIZE, steps=2, **settings))
    return state.latents


def test_a_backend_is_one_room_and_one_row(plain) -> None:
    manifest = read_manifest(plain.folder)
    assert (manifest.backend, manifest.precision) == ("plain", "fp32x")
    assert {case["gate"] for case in parity_of(plain.folder)} == {1e-5}
    (video,) = plain.generate(builtin_scenes()[0], size=SIZE, steps=1)
    assert video.frames.shape == (5, 32, 48, 3)


def parity_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "report.json").read_text("utf-8"))["build"]["parity"]


def test_options_belong_to_their_backend(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(BACKENDS, "plain", PLAIN)
    for options, said in (
        ({"backend": "onnxruntime", "scale": 2.0}, "--backend plain"),
        ({"backend": "plain", "targets": "sm_89"}, "--backend tensorrt-rtx"),
        ({"backend": "plain", "sclae": 2.0}, "'sclae' is no option"),
    ):
        with pytest.raises(LumosXError, match=said):
            rt.build(None, tmp_path / "engine", preset="tiny", **options)
    monkeypatch.delitem(BACKENDS, "plain")
    with pytest.raises(LumosXError, match="got 'plain'"):
        rt.build(None, tmp_path / "engine", preset="tiny", backend="plain")


def test_a_number_format_is_one_row(plain, monkeypatch) -> None:
    assert read_manifest(plain.folder).precision == "fp32x"
    monkeypatch.delitem(FORMATS, "fp32x")
    with pytest.raises(LumosXError, match="'fp32x', accepted are fp32"):
        read_manifest(plain.folder)


def test_a_mechanism_is_one_row(plain, monkeypatch) -> None:
    """One with three branches, two of which are the prompt's: the same video in another order."""

    def branches(guidance: float) -> tuple[Branch, ...]:
        half = Branch(guidance / 2, "text")
        return half, half, Branch(1 - guidance, "null_text")

    monkeypatch.setitem(MECHANISMS, "three", replace(LUMOSX, name="three", branches=branches))
    manifest = replace(plain.manifest, mechanism="three")
    engine = rt.Engine(plain.folder, manifest, plain.backend)
    assert len(engine.prepare(builtin_scenes()[1], size=SIZE, steps=1).branches) == 3
    found, expected = latents(engine, guidance=4.0), latents(plain, guidance=4.0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, latents(plain, guidance=2.0), atol=1e-3)


def test_weights_of_branches_sum_to_1(plain, monkeypatch) -> None:
    wrong = replace(LUMOSX, name="wrong", branches=lambda guidance: (Branch(0.9, "text"),))
    monkeypatch.setitem(MECHANISMS, "wrong", wrong)
    engine = rt.Engine(plain.folder, replace(plain.manifest, mechanism="wrong"), plain.backend)
    with pytest.raises(LumosXError, match="sum to 1, got 0.9"):
        engine.prepare(builtin_scenes()[0], size=SIZE, steps=1)


def test_a_schedule_is_one_row(plain, monkeypatch) -> None:
    def even(steps: int, shift: float) -> Schedule:
        sigmas = 1 - np.arange(steps + 1) / steps
        return Schedule(sigmas.astype(np.float32), (1000 * sigmas[:-1]).astype(np.int64))

    with pytest.raises(LumosXError, match="'even', accepted are released"):
        latents(plain, schedule="even")
    monkeypatch.setitem(SCHEDULES, "even", even)
    expected = latents(plain, shift=1.0)  # the released levels without a shift are even
    assert torch.equal(latents(plain, schedule="even"), expected)
    assert not torch.equal(latents(plain, schedule="even"), latents(plain))


def test_a_command_is_one_row() -> None:
    def greet(name: str) -> None:
        """Say hello."""
        typer.echo(f"hello {name}")

    done = CliRunner().invoke(program((*COMMANDS, greet)), ["greet", "world"])
    assert done.exit_code == 0 and done.stdout == "hello world\n"
    assert CliRunner().invoke(program(), ["greet", "world"]).exit_code == 2

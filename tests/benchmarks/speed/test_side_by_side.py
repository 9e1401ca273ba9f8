"""The side-by-side benchmark: what it compares is right, what is wrong is not timed, nothing is
done twice, and figures are what the times say."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.gpu.as_released import AsReleased
from benchmarks.speed import (
    profiles,
    side_by_side,
)
from benchmarks.speed.picture import draw
from benchmarks.speed.rounds import (
    explained,
    in_turns,
    timed_rows,
)
from benchmarks.speed.sizes import (
    SIZES,
    Size,
    loud_model,
)
from benchmarks.speed.variants import (
    BASELINE,
    VARIANTS,
    WAN,
    Judge,
    Variant,
    bound,
)
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.eager import EagerBackend
from tests.helpers.budget import (
    assert_within_budget,
    in_float64,
    widened,
)
from tests.reference.test_golden import INDEX, ModelCase

ROOT = Path(__file__).parents[3]

SMALL = Size(
    "small",
    LumosXConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=3, text_dim=20, text_len=12),
    "3x4x9+1+2.3",
    seeds=2,
)


MODELS = [name for name, about in INDEX["files"].items() if about["kind"] == "model"]


@pytest.fixture(scope="module")
def model():
    return loud_model(SMALL.config)


def velocities(model: LumosX) -> dict[bool, torch.Tensor]:
    """With references and without."""

    def velocity(size: Size) -> torch.Tensor:
        latents, inputs = size.given
        given = (latents, torch.full((1,), 500), *inputs.arguments())
        with torch.no_grad():
            return model(*(widened(given) if model.dtype == torch.float64 else given))

    return {True: velocity(SMALL), False: velocity(SMALL.without_references)}


@pytest.fixture(scope="module")
def exact(model):
    """The reference in float64."""
    return velocities(in_float64(model))


# -- what is compared ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_released_formulation_gives_what_the_release_gave(name: str) -> None:
    case = ModelCase(name)
    g, config = case.golden, case.model.config
    if case.layout.references == case.layout.video_frames:
        pytest.skip("as many references as frames: their tokens cannot be told apart by number")
    case.model.ops = AsReleased(case.layout, config.head_dim, torch.device("cpu")).ops()
    with torch.no_grad():
        out = case.velocity(g("x"), g("t"), keep_references=True)
    assert relative_error(out, g("out_full")) < 2e-6


def test_the_released_formulation_is_the_reference_in_float64(model, exact) -> None:
    run = VARIANTS[BASELINE].run(SMALL, model, Path())
    assert_within_budget("velocity", run(), velocities(model)[True], exact[True])


def test_the_released_formulation_of_another_layout_is_not(model, exact) -> None:
    wrong = replace(SMALL, key="3x4x9+3+3")
    model_of = VARIANTS[BASELINE].run(wrong, model, Path())
    assert relative_error(model_of(), exact[True]) > 1e-3


def test_plain_wan_is_the_reference_without_references(model, exact) -> None:
    variant = VARIANTS[WAN]
    run = variant.run(variant.of(SMALL), model, Path())
    # diffusers forms the time's angles in float32, which is most of it
    assert relative_error(run(), exact[False]) < 1e-5
    assert relative_error(run(), exact[True]) > 1e-2


def test_reductions_of_precision_are_in_the_model_that_runs(model, exact) -> None:
    run = VARIANTS[f"{BASELINE}, bf16"].run(SMALL, model, Path())
    assert 1e-4 < relative_error(run(), exact[True]) < 5e-2


def test_sizes_are_what_is_said_of_them() -> None:
    medium = SIZES["medium"]
    assert (medium.config.dim, medium.config.num_layers, medium.config.head_dim) == (512, 8, 128)
    assert medium.layout.subjects == (4, 4, 4) and medium.config.text_len == 512
    latents = [size.given[0] for size in (SMALL, SMALL.without_references)]
    assert torch.equal(*latents)


# -- what is wrong is not timed -----------------------------------------------------------------


def variant(name: str, run, precision: str = "fp32") -> Variant:
    return Variant(name, precision, run, ())


def spoiled(by: float):
    def run(size, model, made):
        right = bound(EagerBackend(model), size)
        return lambda: right() * (1 + by)

    return run


def broken(size, model, made):
    raise RuntimeError("no such kernel\nand more")


def test_only_what_passes_its_gate_is_run(model, monkeypatch, capsys) -> None:
    chosen = [
        variant("right", spoiled(0.0)),
        variant("off", spoiled(1e-3)),
        variant("nan", spoiled(float("nan"))),
        variant("coarse", spoiled(1e-3), "bf16"),
        variant("too coarse", spoiled(0.3), "bf16"),
        variant("broken", broken),
        variant("last", spoiled(1e-7)),
    ]
    rows, runs, _ = side_by_side.judged(SMALL, model, chosen)
    assert list(runs) == ["right", "coarse", "last"]
    assert rows["broken"]["failed"] == "no such kernel"
    assert "errs by 1.0e-03, its gate is 1.0e-05" in rows["off"]["failed"]
    assert rows["nan"]["relative_error"] is None and "passed" not in rows["broken"]
    assert [rows[name]["passed"] for name in ("right", "off", "too coarse")] == [True, False, False]
    json.dumps(rows, allow_nan=False)


def test_the_gate_of_bf16_is_twice_what_the_reference_errs(model, exact) -> None:
    judge = Judge(SMALL, model)
    reference = VARIANTS["reference, eager, bf16"]
    own = relative_error(reference.run(SMALL, model, Path())(), exact[True])
    assert judge.gate(reference) == pytest.approx(2 * own, rel=0.02)
    assert judge.gate(VARIANTS[BASELINE]) == 1e-5


def test_a_variant_that_fails_costs_one_row(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(side_by_side, "CACHE", tmp_path)
    known = {v.name: v for v in (variant(BASELINE, spoiled(0.0)), variant("broken", broken))}
    monkeypatch.setattr(side_by_side, "VARIANTS", known)
    record = side_by_side.measure(SMALL, list(known.values()), 2)
    first, second = record["rows"]
    assert first["median_ms"] > 0 and sum(first["shares"].values()) == pytest.approx(1, abs=0.01)
    assert second["failed"] and "median_ms" not in second
    assert "no such kernel" in side_by_side.as_text("small", record)
    assert draw({"sizes": {"small": record}}).width > 300
    json.dumps(record, allow_nan=False)


# -- nothing is done twice ----------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, seconds: float, lives: int = 99):
        def run() -> None:
            if self.calls.count(name) == lives:
                raise KeyboardInterrupt
            self.calls.append(name)
            self.now += seconds

        return run


def test_rounds_take_turns_and_a_killed_run_goes_on(tmp_path) -> None:
    clock = Clock()
    dying = {"a": clock.taking("a", 2.0), "b": clock.taking("b", 1.0, lives=2)}
    with pytest.raises(KeyboardInterrupt):
        in_turns(dying, 4, tmp_path, clock=clock)
    assert clock.calls == ["a", "b", "b", "a", "a"]  # the last round was not finished
    (tmp_path / "rounds.jsonl").open("a").write('{"torn')
    alive = {"a": clock.taking("a", 2.0), "b": clock.taking("b", 1.0)}
    del clock.calls[:]
    done = in_turns(alive, 4, tmp_path, clock=clock)
    assert clock.calls == ["a", "b", "b", "a"]
    assert [row["seconds"] for row in done] == [{"a": 2.0, "b": 1.0}] * 4
    in_turns(alive, 4, tmp_path, clock=clock)
    assert len(clock.calls) == 4
    others = in_turns({"a": alive["a"]}, 1, tmp_path, clock=clock)
    assert others[0]["seconds"] == {"a": 2.0}  # rounds of other variants are not mixed in


def test_profiles_are_kept_and_one_that_fails_is_left_out(tmp_path) -> None:
    asked = []

    def profile(name: str) -> dict[str, float]:
        asked.append(name)
        if name == "b":
            raise ValueError("nothing to see")
        return {"linear": 1.0}

    for _ in range(2):
        assert explained(["a", "b"], profile, tmp_path) == {"a": {"linear": 1.0}}
    assert asked == ["a", "b", "b"]


def test_what_is_made_is_made_once_and_only_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(side_by_side, "CACHE", tmp_path)
    commands, lives = [], [False, True]

    def run(command, **options):
        commands.append(command)
        Path(command[-1]).write_text("graph")
        ok = lives[len(commands) - 1]
        return SimpleNamespace(returncode=0 if ok else 1, stderr="" if ok else "line\nout of disk")

    monkeypatch.setattr(subprocess, "run", run)
    made = [v for v in VARIANTS.values() if v.make]
    with pytest.raises(RuntimeError, match="out of disk"):
        side_by_side.made_file(SMALL, made[0])
    for _ in range(2):
        assert side_by_side.made_file(SMALL, made[0]).read_text() == "graph"
    assert len(commands) == 2 and commands[0][3:6] == ["--make", "small", made[0].name]
    folders = {side_by_side.made_folder(SMALL, v) for v in made}
    assert len(folders) == len(made)
    wider = replace(SMALL, config=replace(SMALL.config, ffn_dim=128))
    assert side_by_side.made_folder(wider, made[0]) not in folders
    several = replace(SMALL, seeds=4)
    assert side_by_side.made_folder(several, made[0]) in folders


# -- figures ------------------------------------------------------------------------------------


def test_ratios_are_of_rounds_and_their_interval_is_a_bootstraps() -> None:
    seconds = [(4.0, 2.0), (9.0, 3.0), (10.0, 10.0), (8.0, 4.0), (5.0, 2.0)]  # ratios 2 3 1 2 2.5
    rounds = [{"seconds": {BASELINE: a, "fast": b}} for a, b in seconds]
    rows = timed_rows([BASELINE, "fast"], rounds, lambda name: [BASELINE, WAN])
    found = rows["fast"]["times_as_fast_as"]
    assert rows["fast"]["median_ms"] == 3000 and set(found) == {BASELINE}
    assert found[BASELINE]["ratio"] == 2.0
    draws = np.random.default_rng(7).choice([2.0, 3.0, 1.0, 2.0, 2.5], (20000, 5))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    assert (found[BASELINE]["low"], found[BASELINE]["high"]) == pytest.approx((low, high), abs=0.3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "linear"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_softmax", "attention"),
        ("aten::copy_", "moves"),
        ("aten::native_layer_norm", "rest"),
    ],
)
def test_operators_of_torch_are_told_apart(name: str, kind: str) -> None:
    assert profiles.kind_of_torch(name) == kind


def test_shares_of_onnxruntime_are_of_the_last_call() -> None:
    def node(op: str, at: int, took: int, *shapes: list[int]) -> dict[str, object]:
        given = [{"float": shape} for shape in shapes]
        facts = {"op_name": op, "input_type_shape": given}
        return {
            "cat": "Node", "name": f"{op}_kernel_time", "ts": at, "dur": took, "args": facts
        }  # fmt: skip

    events = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 900},
        node("MatMul", 10, 900, [2, 8], [8, 8]),
        {"cat": "Session", "name": "model_run", "ts": 1000, "dur": 100},
        node("MatMul", 1010, 40, [1, 2, 8], [8, 8]),
        node("MatMul", 1050, 20, [1, 2, 4, 8], [1, 2, 8, 4]),
        node("Softmax", 1070, 10, [1, 2, 4, 4]),
        node("DequantizeLinear", 1080, 5, [8]),
        node("Concat", 1085, 5, [8]),
        node("LayerNormalization", 1090, 5, [8]),
    ]
    assert profiles.of_events(events) == {
        "linear": 0.4, "attention": 0.3, "rounding": 0.05, "moves": 0.05, "rest": 0.2
    }  # fmt: skip


def test_a_product_with_weights_is_mostly_linear() -> None:
    a = torch.ones(256, 256)
    found = profiles.of_torch(lambda: torch.addmm(a[0], a, a))
    assert set(found) == set(profiles.KINDS) and found["linear"] > found["attention"] == 0

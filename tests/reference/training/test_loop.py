"""The training loop against slow loops and closed forms; killed runs against whole ones."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.robustness import toy
from benchmarks.robustness.toy import CONFIG, SIZE, Toy
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.training.batches import batch_at
from lumosx_rt.reference.training.curve import draw_curve
from lumosx_rt.reference.training.latents import LatentCache, build_cache
from lumosx_rt.reference.training.loop import TrainingStep, batch_loss, train
from lumosx_rt.reference.training.optimizer import initialise
from lumosx_rt.reference.training.recipe import Recipe, Stage, Times

ONE, TWO = Toy(6, name="one"), Toy(4, name="two", fingerprint="other", kinds=((1, (2, 1)),))


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> dict[str, LatentCache]:
    folder, encoders = tmp_path_factory.mktemp("caches"), toy.encoders()
    return {s.name: build_cache(folder / s.name, s, SIZE, *encoders) for s in (ONE, TWO)}


def stage(name: str = "first", steps: int = 3, data: Toy = ONE, **options) -> Stage:
    return Stage(name=name, steps=steps, data=data, **({"streams": 2, "seeds": 2} | options))


def recipe_of(*stages: Stage, **options) -> Recipe:
    options = {"model": CONFIG, "size": SIZE, "warm_up": 2, "log_every": 1} | options
    return Recipe(stages=stages or (stage(), stage("second", 4, TWO)), **options)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state.safetensors")


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Killed(Exception):
    pass


def killer(at: int):
    def progress(told: TrainingStep) -> None:
        if told.step == at:
            raise Killed

    return progress


# -- one step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible", [True, False])
def test_the_loss_of_every_seed_as_if_it_were_alone(caches, visible: bool) -> None:
    """docs/spec.md#training written out, one clip at a time."""
    recipe = recipe_of(relational_visibility=visible)
    model = initialise(LumosX(CONFIG), 3)
    batch = batch_at(recipe, recipe.stages[1], caches["two"], 5)
    losses = batch_loss(model, batch)
    assert losses.shape == batch.noise.shape[:2] == ((2, 2) if visible else (4, 1))
    structure = batch.structure
    for s in range(len(losses)):
        alone = structure._replace(
            rope_references=structure.rope_references[:, s : s + 1],
            group_index=structure.group_index[s : s + 1],
            group_mask=structure.group_mask[s : s + 1],
            group_inverse=structure.group_inverse[s : s + 1],
        )
        for seed in range(losses.shape[1]):
            x0, noise, t = batch.x0[s], batch.noise[s, seed], float(batch.time[s])
            seen = (1 - t / 1000) * x0 + t / 1000 * noise
            velocity = model(
                seen[None, None], torch.tensor([int(t)]), batch.text[s : s + 1],
                batch.references[s : s + 1], batch.template[s : s + 1], alone,
            )[0, 0]  # fmt: skip
            wanted = ((velocity - (noise - x0)) ** 2).mean()
            assert float(losses[s, seed].detach()) == pytest.approx(
                float(wanted.detach()), rel=1e-5
            )


def gradients(model: LumosX, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batch_loss(model, batch).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_parameter_learns(caches) -> None:
    recipe = recipe_of()
    batch = batch_at(recipe, recipe.stages[1], caches["two"], 1)
    model = initialise(LumosX(CONFIG), 0)
    grads = gradients(model, batch)
    assert {name for name, grad in grads.items() if grad.any()} == set(
        name for name, _ in model.named_parameters()
    )


# -- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "adamw", "bf16": True}], ids=["muon", "adamw"]
)
def test_a_killed_run_goes_on_bit_for_bit(caches, tmp_path: Path, options: dict) -> None:
    """Killed before, at and after checkpoints, and across the boundary between two stages."""
    recipe = recipe_of(save_every=2, text_dropout=0.3, **options)
    whole = train(recipe, tmp_path / "whole", caches=caches)
    for at in (0, 2, 4):
        with pytest.raises(Killed):
            train(recipe, tmp_path / "killed", caches=caches, progress=killer(at))
    told: list[TrainingStep] = []
    resumed = train(recipe, tmp_path / "killed", caches=caches, progress=told.append)
    assert [line.step for line in told] == [4, 5, 6]
    wanted, got = state_of(tmp_path / "whole"), state_of(tmp_path / "killed")
    assert wanted.keys() == got.keys() and len(wanted) > 100
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    lines = lines_of(tmp_path / "killed")
    assert [line["step"] for line in lines] == list(range(7)), "none twice, none missing"
    assert [line["stage"] for line in lines] == ["first"] * 3 + ["second"] * 4
    for line, same in zip(lines, lines_of(tmp_path / "whole"), strict=True):
        assert all(line[name] == same[name] for name in ("loss", "loss_ema", "learning_rate"))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_run_is_only_read(caches, tmp_path: Path) -> None:
    recipe = recipe_of(stage(steps=2))
    first = train(recipe, tmp_path, caches=caches)
    again = train(recipe, tmp_path, caches=caches, progress=killer(0))
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(LumosXError, match="holds a run already"):
        train(recipe, tmp_path, caches=caches, resume=False)


def test_the_averaged_model_comes_back(caches, tmp_path: Path) -> None:
    """Against the recurrence over the weights that were saved after every step."""
    recipe = recipe_of(stage(steps=4), save_every=1, ema_decay=0.2)
    average = {n: p.detach().clone() for n, p in initialise(LumosX(CONFIG), 0).named_parameters()}
    for step in range(4):
        if step < 3:
            with pytest.raises(Killed):
                train(recipe, tmp_path, caches=caches, progress=killer(step))
        else:
            model = train(recipe, tmp_path, caches=caches)
        state, decay = state_of(tmp_path), min(0.2, (1 + step) / (10 + step))
        average = {n: decay * a + (1 - decay) * state[f"model.{n}"] for n, a in average.items()}
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, average[name], atol=1e-6), name
        assert not parameter.requires_grad
    assert not torch.allclose(model.head.head.weight, state_of(tmp_path)["model.head.head.weight"])


@pytest.mark.slow
def test_training_learns(caches, tmp_path: Path) -> None:
    """One scene, again and again: what is learnt shows on noise that was never seen."""
    data = Toy(1, name="two", fingerprint="other", kinds=((1, (2, 1)),))
    small = build_cache(tmp_path / "cache", data, SIZE, *toy.encoders())
    wide = replace(CONFIG, dim=96, num_heads=4)  # a patch has 64 numbers, and all are noise
    learnt = stage(steps=40, data=data, streams=2, seeds=4)
    recipe = recipe_of(learnt, text_dropout=0.0, model=wide)
    losses: list[float] = []
    train(recipe, tmp_path, caches={"two": small}, progress=lambda told: losses.append(told.loss))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_weights_to_start_from(caches, tmp_path: Path) -> None:
    start = initialise(LumosX(CONFIG), 11)
    save_bundle(tmp_path / "bundle", transformer=start)
    recipe = recipe_of(
        stage(steps=1, learning_rate=1e-12), start_from=tmp_path / "bundle", weight_decay=0.0
    )
    model = train(recipe, tmp_path / "run", caches=caches)
    for (name, a), b in zip(model.named_parameters(), start.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7), name
    assert torch.equal(
        load_transformer(tmp_path / "bundle").head.head.weight, start.head.head.weight
    ), "the checkpoint is left alone"


def test_what_is_told(caches, tmp_path: Path) -> None:
    told: list[TrainingStep] = []
    recipe = recipe_of(log_every=3)
    train(recipe, tmp_path, caches=caches, progress=told.append)
    assert [line.steps for line in told] == [7] * 7
    assert [line.seconds_left is None for line in told] == [True, True, *[False] * 5]
    assert told[-1].seconds_left == 0 and all(line.seconds > 0 for line in told)
    smoothed = told[0].loss
    for line in told[1:]:
        smoothed = 0.98 * smoothed + 0.02 * line.loss
        assert line.loss_ema == pytest.approx(smoothed)
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [0, 2, 5, 6]
    batch = batch_at(recipe, recipe.stages[1], caches["two"], 6)
    last = lines[-1]
    assert last["tokens_per_second"] * last["seconds"] == pytest.approx(batch.tokens)
    draw_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (960, 480) and len(picture.getcolors(1 << 16)) > 3


def test_two_processes_take_the_step_of_one(caches, tmp_path: Path) -> None:
    """AdamW's first moments after one step are a tenth of the gradient."""
    options = {"optimizer": "adamw", "grad_clip": 1e6, "warm_up": 0, "seed": 2}
    recipe = recipe_of(stage(steps=1, data=TWO, streams=4), **options)
    told: list[TrainingStep] = []
    train(recipe, tmp_path / "alone", caches=caches, progress=told.append)
    script = f"""
import torch
from lumosx_rt.reference.training.latents import LatentCache
from lumosx_rt.reference.training.recipe import Recipe, Stage
from lumosx_rt.reference.training.loop import train
from benchmarks.robustness.toy import CONFIG, SIZE, Toy
torch.set_num_threads(1)
data = Toy(4, name="two", fingerprint="other", kinds=((1, (2, 1)),))
one = Stage(name="first", steps=1, data=data, streams=4, seeds=2)
recipe = Recipe(model=CONFIG, size=SIZE, stages=(one,), log_every=1, **{options})
cache = LatentCache({str(caches["two"].folder)!r})
train(recipe, {str(tmp_path / "two")!r}, caches={{"two": cache}})
"""
    with_rank = os.environ | {
        "PYTHONPATH": str(Path(toy.__file__).parents[2]), "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    crew = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=with_rank | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        errors = [member.communicate(timeout=120)[1] for member in crew]
    finally:
        for member in crew:
            member.kill()
    assert [member.returncode for member in crew] == [0, 0], errors
    alone, both = state_of(tmp_path / "alone"), state_of(tmp_path / "two")
    moments = [name for name in alone if name.endswith("exp_avg")]
    assert len(moments) == len(list(LumosX(CONFIG).parameters()))
    for name in moments:
        scale = float(alone[name].abs().max())
        assert float((alone[name] - both[name]).abs().max()) < 1e-4 * scale, name
    (line,) = lines_of(tmp_path / "two")
    assert line["loss"] == pytest.approx(told[0].loss, rel=1e-5)


# -- refusals -------------------------------------------------------------------------------------


def test_all_problems_of_a_recipe_in_one_error() -> None:
    with pytest.raises(LumosXError) as error:
        recipe_of(
            stage(steps=0, augmented=0.5, latent_frames=3), text_dropout=2.0, optimizer="sgd",
            relations="none", times=Times(sampling="odd"),
        )  # fmt: skip
    message = str(error.value)
    for part in (
        "7 problems",
        "text_dropout must be from 0 to 1, got 2.0",
        "optimizer 'sgd'",
        "relations 'none'; accepted are full, lone, lone-interleaved",
        "sampling 'odd'",
        "stage 'first': steps",
        "holds no variants",
        "latent_frames must be 1 to 2",
    ):
        assert part in message  # fmt: skip
    with pytest.raises(LumosXError, match="two sources have the name 'one'"):
        recipe_of(stage(), stage("b", data=Toy(6, name="one", fingerprint="else")))
    with pytest.raises(LumosXError, match="there are no stages"):
        Recipe(model=CONFIG, size=SIZE, stages=())


def test_another_recipe_does_not_go_on(caches, tmp_path: Path) -> None:
    train(recipe_of(stage(steps=1)), tmp_path, caches=caches)
    train(recipe_of(stage(steps=1), save_every=7), tmp_path, caches=caches)
    with pytest.raises(LumosXError, match=r"another recipe \(its stages, seed differ\)"):
        train(recipe_of(stage(steps=2), seed=1), tmp_path, caches=caches)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:5000])
    with pytest.raises(LumosXError, match="no readable training state"):
        train(recipe_of(stage(steps=1)), tmp_path, caches=caches)


def test_caches_that_do_not_fit_are_refused(caches, tmp_path: Path) -> None:
    with pytest.raises(LumosXError, match="no cache of source 'two'"):
        train(recipe_of(), tmp_path, caches={"one": caches["one"]})
    other = stage(data=Toy(6, name="one", fingerprint="new"))
    with pytest.raises(LumosXError, match="its source is first, the recipe's is new"):
        train(recipe_of(other), tmp_path, caches=caches)
    model = replace(CONFIG, text_len=32)
    with pytest.raises(LumosXError, match="its text length is 48, the recipe's is 32"):
        train(recipe_of(stage(), model=model), tmp_path, caches=caches)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_loss_that_is_not_finite_stops_the_run(caches, tmp_path: Path) -> None:
    recipe = recipe_of(stage(steps=5), save_every=1)
    with pytest.raises(Killed):
        train(recipe, tmp_path, caches=caches, progress=killer(1))
    before = (tmp_path / "state.safetensors").read_bytes()
    bad = LatentCache(caches["one"].folder)
    bad._examples = [e._replace(video=e.video * float("nan")) for e in bad._examples]
    with pytest.raises(LumosXError, match="at step 2 the loss is nan"):
        train(recipe, tmp_path, caches={"one": bad})
    assert (tmp_path / "state.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_training_that_is_sharded_is_refused(
    caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Averages and optimizer are of whole tensors, which a sharded model does not have."""
    import accelerate

    class Sharded:
        def __init__(self, **options: object) -> None:
            self.distributed_type = f"DistributedType.{kind}"

    monkeypatch.setattr(accelerate, "Accelerator", Sharded)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LumosXError, match=f"accelerate is set to {kind}, which shards"):
        train(recipe_of(), tmp_path, caches=caches)
    assert not list(tmp_path.iterdir())

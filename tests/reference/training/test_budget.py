"""What a run is said to need, against what it holds and against counting by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.robustness import toy
from benchmarks.robustness.toy import CONFIG, SIZE, Toy
from lumosx_rt.reference.backbones.config import PRESETS, LumosXConfig
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.training import budget as planning
from lumosx_rt.reference.training.batches import batch_at
from lumosx_rt.reference.training.latents import build_cache
from lumosx_rt.reference.training.loop import batch_loss
from lumosx_rt.reference.training.optimizer import Optimizer, initialise
from lumosx_rt.reference.training.precision import trainable
from lumosx_rt.reference.training.recipe import Recipe, Stage

DATA = Toy(4, kinds=((1, (2, 1)),))


def recipe_of(
    model: LumosXConfig = CONFIG,
    size: VideoSize = SIZE,
    *,
    streams: int = 2,
    seeds: int = 2,
    **options,
) -> Recipe:
    stage = Stage(name="one", steps=1, data=DATA, streams=streams, seeds=seeds)
    return Recipe(model=model, size=size, stages=(stage,), **options)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_planned_memory_is_what_is_held(tmp_path: Path, optimizer: str, bf16: bool) -> None:
    config = replace(CONFIG, num_layers=5)
    recipe = recipe_of(config, optimizer=optimizer, bf16=bf16)
    found = planning.plan(recipe, 4)
    cache = build_cache(tmp_path, DATA, SIZE, *toy.encoders())
    batch = batch_at(recipe, recipe.stages[0], cache, 0)
    model = initialise(trainable(recipe), 0)
    held = Optimizer(model, recipe.optimizer, 0.0)
    batch_loss(model, batch).sum().backward()
    weights = sum(4 * p.numel() for p in model.parameters())
    assert sum(4 * p.grad.numel() for p in model.parameters()) == found.gradients_bytes == weights
    assert found.weights_bytes == found.ema_bytes == weights == 4 * found.parameters
    held.step(1e-3)
    moments = sum(4 * t.numel() for t in held.state().values() if t.dim())
    assert found.optimizer_bytes == moments
    kept = planning.activations(lambda: batch_loss(model, batch), list(model.parameters()))
    assert found.kept_activations_bytes == pytest.approx(kept, rel=0.05)
    assert found.checkpointed_activations_bytes < 0.6 * kept
    assert found.tokens == batch.tokens and found.seconds_per_step is None


def test_planned_arithmetic() -> None:
    """Twice the multiplications of all matrices and attentions, three passes; small terms left."""
    sizes = {"dim": 192, "ffn_dim": 768, "num_heads": 6, "num_layers": 5}
    config = LumosXConfig(**sizes, text_dim=64, text_len=64)
    size = replace(SIZE, frames=9, height=64, width=144)
    found = planning.plan(recipe_of(config, size, streams=6, seeds=4), 8)
    video, pictures, text, d = 24 * 108, 6 * 288, 6 * 64, 192
    blocks = 0.0
    for block in range(5):
        both = video + (pictures if block < 4 else 0)
        blocks += 2 * both * (6 * d * d + 2 * d * 768) + 2 * 2 * text * d * d
        blocks += 4 * video * (108 + 288) * d + 4 * both * 64 * d
        blocks += 2 * 2 * pictures * d * d if block == 4 else 4 * pictures * 36 * d
    assert found.tflop == pytest.approx(3 * blocks / 1e12, rel=0.1)


def test_full_size_is_planned_and_refused_where_it_does_not_fit(monkeypatch) -> None:
    recipe = recipe_of(PRESETS["1.3b"], VideoSize(), streams=1, seeds=1, bf16=True)
    monkeypatch.setattr(planning, "available_bytes", lambda device: 139 * 2**30)
    monkeypatch.setattr(planning, "_speed", lambda device, bf16: 4e14)
    found = planning.plan(recipe, 16, "cuda")
    assert found.seconds_per_step == pytest.approx(found.tflop / 400)
    assert found.parameters == pytest.approx(1.42e9, rel=0.01)
    assert found.weights_bytes == 4 * found.parameters
    assert found.kept_activations_bytes > found.available_bytes
    with pytest.raises(LumosXError, match="does not fit: .*; turn checkpointing on"):
        found.must_fit()
    less = planning.plan(replace(recipe, checkpointing=True), 16, "cuda")
    less.must_fit()
    assert less.tflop == pytest.approx(found.tflop * 4 / 3)
    monkeypatch.setattr(planning, "available_bytes", lambda device: 2**30)
    with pytest.raises(LumosXError, match="take fewer streams"):
        planning.plan(replace(recipe, checkpointing=True), 16, "cuda").must_fit()

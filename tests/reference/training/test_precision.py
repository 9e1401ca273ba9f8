"""The model as it is trained against the model as it is written."""

import pytest
import torch

from benchmarks.robustness import toy
from benchmarks.robustness.toy import CONFIG, SIZE, Toy
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.training.batches import batch_at
from lumosx_rt.reference.training.budget import activations
from lumosx_rt.reference.training.latents import LatentCache, build_cache
from lumosx_rt.reference.training.loop import batch_loss
from lumosx_rt.reference.training.optimizer import initialise
from lumosx_rt.reference.training.precision import attend_by_products, trainable
from lumosx_rt.reference.training.recipe import Recipe, Stage

DATA = Toy(4, kinds=((1, (2, 1)),))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> LatentCache:
    return build_cache(tmp_path_factory.mktemp("cache"), DATA, SIZE, *toy.encoders())


def recipe_of(**options) -> Recipe:
    stage = Stage(name="one", steps=9, data=DATA, streams=2, seeds=2)
    return Recipe(model=CONFIG, size=SIZE, stages=(stage,), **options)


def gradients(model: LumosX, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batch_loss(model, batch).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("bf16", [False, True])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(cache, bf16: bool) -> None:
    plain, less = recipe_of(bf16=bf16), recipe_of(bf16=bf16, checkpointing=True)
    batch = batch_at(plain, plain.stages[0], cache, 1)
    models = [initialise(trainable(recipe), 0) for recipe in (plain, less)]
    wanted, got = (gradients(model, batch) for model in models)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    kept, rest = (
        activations(lambda m=m: batch_loss(m, batch), list(m.parameters())) for m in models
    )
    assert rest < kept / 2


def test_bf16_is_for_the_blocks(cache) -> None:
    recipe = recipe_of(bf16=True)
    batch = batch_at(recipe, recipe.stages[0], cache, 1)
    model = initialise(trainable(recipe), 0)
    seen: dict[str, torch.dtype] = {}
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda *call, name=name: seen.update({name: call[2].dtype}))
    rough = gradients(model, batch)
    half = {name for name, dtype in seen.items() if dtype == torch.bfloat16}
    assert half == {name for name in seen if name.startswith("blocks.")}
    assert all(grad.dtype == torch.float32 for grad in rough.values())
    exact = gradients(initialise(LumosX(CONFIG), 0), batch)
    error = sum(float((rough[n] - exact[n]).square().sum()) for n in exact)
    norm = sum(float(grad.square().sum()) for grad in exact.values())
    assert 0 < error < 0.03**2 * norm


@pytest.mark.parametrize("mask", [None, "bool", "bias"])
def test_attention_by_products(mask: str | None) -> None:
    """Against float64; it may err at most twice as much as torch's own in the same dtype."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, 2, 16, generator=generator).bfloat16() for n in (7, 9, 9))
    given = None
    if mask == "bool":
        given = torch.rand(3, 1, 1, 9, generator=generator) < 0.5
        given[..., 0] = True
    elif mask == "bias":
        given = torch.randn(3, 2, 7, 9, generator=generator).bfloat16()
    wide = given.double() if mask == "bias" and given is not None else given
    exact = ops.attend(q.double(), k.double(), v.double(), wide)
    got, fused = attend_by_products(q, k, v, given), ops.attend(q, k, v, given)
    assert got.dtype == torch.bfloat16 and got.shape == exact.shape
    own, limit = ((x.double() - exact).norm() for x in (got, fused))
    assert float(own) < 2 * float(limit)
    doubled = attend_by_products(q.double(), k.double(), v.double(), wide)
    assert float((doubled - exact).abs().max()) < 1e-6


def test_cpus_in_bf16_attend_by_products() -> None:
    assert trainable(recipe_of(bf16=True)).ops is not ops.REFERENCE
    assert trainable(recipe_of()).ops is ops.REFERENCE

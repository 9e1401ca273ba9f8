"""Initial weights, optimizers, averages and learning rates against closed forms."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.robustness.toy import CONFIG, SIZE, Toy
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.training.optimizer import Average, Optimizer, ema_decay, initialise
from lumosx_rt.reference.training.recipe import Recipe, Stage
from tests.helpers.budget import assert_within_budget


def test_initial_weights() -> None:
    config = replace(CONFIG, dim=96, num_heads=4)
    model = initialise(LumosX(config), 7)
    torch.manual_seed(1)
    again = initialise(LumosX(config), 7)
    other = initialise(LumosX(config), 8)
    for (name, a), b, c in zip(
        model.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        constant = name.endswith("bias") or "norm" in name
        assert torch.equal(a, c) == constant, name
        if constant:
            assert bool((a == float(name.endswith("weight"))).all()), name
    weight = model.patch_embedding.weight.flatten(1)
    plain, exact = torch.linalg.qr(torch.randn(96, 64)).Q, torch.eye(64, dtype=torch.float64)
    assert_within_budget("orthogonal", weight.T @ weight, plain.T @ plain, exact)
    # what the head reads is normalised: of an embedded patch, back to the patch itself
    frames = torch.randn(1, 2, 16, 4, 6)
    tokens = model.patchify(frames)
    normal = torch.nn.functional.layer_norm(tokens, (96,), eps=1e-6)
    back = model.unpatchify(model.head.head(normal), 2, torch.Size((4, 6))).transpose(1, 2)
    cosine = torch.nn.functional.cosine_similarity(back.flatten(), frames.flatten(), 0)
    assert float(cosine.detach()) > 0.97 and float(back.detach().std()) == pytest.approx(1, abs=0.1)
    xavier = math.sqrt(6 / (96 + 96))
    assert float(model.blocks[0].self_attn.q.weight.detach().abs().max()) == pytest.approx(
        xavier, rel=0.01
    )
    small = xavier / math.sqrt(2 * 3)
    assert float(model.blocks[0].self_attn.o.weight.detach().abs().max()) == pytest.approx(
        small, rel=0.01
    )


def test_muon_is_for_the_matrices_of_the_blocks() -> None:
    model = initialise(LumosX(CONFIG), 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, "muon", weight_decay=0.1)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step(1e-2)
    for name, p in model.named_parameters():
        matrix = name.endswith("weight") and p.dim() >= 2
        kept = before[name] * (1 - 1e-2 * 0.1 * matrix)
        moved = (p.detach() - kept) / -1e-2
        if name.startswith("blocks.") and matrix:
            singular = torch.linalg.svdvals(moved.double()) / (0.2 * max(p.shape) ** 0.5)
            assert 0.5 < singular.min() and singular.max() < 1.4, name  # about orthogonal
        else:
            assert torch.allclose(moved, grads[name].sign(), atol=2e-3), name
        assert p.grad is None
    state = optimizer.state()
    assert {n.rpartition(".")[2] for n in state} == {
        "momentum_buffer", "exp_avg", "exp_avg_sq", "step",
    }  # fmt: skip


def test_adamw_for_all() -> None:
    """Three steps of the formula, in float64."""
    model = initialise(LumosX(CONFIG), 0)
    optimizer = Optimizer(model, "adamw", weight_decay=0.1)
    name = "blocks.1.ffn.0.weight"
    weight = model.get_parameter(name).detach().double().clone()
    m = v = torch.zeros_like(weight)
    for step in range(1, 4):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        grad = model.get_parameter(name).grad.double()
        rate = 0.01 * step
        optimizer.step(rate)
        m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2
        weight = weight * (1 - rate * 0.1)
        weight -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    assert torch.allclose(model.get_parameter(name).detach().double(), weight, atol=1e-6)
    assert not any("momentum_buffer" in entry for entry in optimizer.state())


def test_the_average_follows_its_recurrence() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    values, average = [[1.0, 2.0], [3.0, -1.0], [0.0, 5.0]], None
    for step, value in enumerate(values):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([value]))
        if average is None:
            average, slow = Average(model), [float(x) for x in value]
        decay = ema_decay(step, 0.15)
        assert decay == [0.1, 0.15, 0.15][step]
        average.update(decay)
        slow = [decay * a + (1 - decay) * x for a, x in zip(slow, value, strict=True)]
        assert average.weights["weight"][0].tolist() == pytest.approx(slow, rel=1e-6)


def test_learning_rates() -> None:
    stages = (
        Stage(name="a", steps=10, data=Toy(), learning_rate=1.0),
        Stage(name="b", steps=30, data=Toy(), learning_rate=0.5),
    )
    recipe = Recipe(model=CONFIG, size=SIZE, stages=stages, warm_up=4, decay=0.25)
    rates = [recipe.learning_rate(step) for step in range(40)]
    wanted = [0.25, 0.5, 0.75, *[1.0] * 7, *[0.5] * 21, *[0.5 * k / 10 for k in range(9, 0, -1)]]
    assert rates == pytest.approx(wanted)
    assert [recipe.stage_at(step).name for step in (0, 9, 10, 39)] == ["a", "a", "b", "b"]
    with pytest.raises(LumosXError, match="only 40 steps"):
        recipe.stage_at(40)

"""Schedule, solver and training objective against the formulas of docs/spec.md#sampling and
#training, in plain Python."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.mechanism import guidance_branches
from lumosx_rt.reference.sampling import flow, solvers
from lumosx_rt.reference.sampling.branches import combined
from lumosx_rt.reference.sampling.schedules import Schedule

SHAPE = (4, 2, 3, 5)


def levels(steps: int, shift: float) -> list[float]:
    found = []
    for k in range(steps):
        tau = 1 - k / steps
        found.append(shift * tau / (1 + (shift - 1) * tau))
    return found


def solve(
    velocity: Callable[[Tensor, int], Tensor], noise: Tensor, steps: int, shift: float
) -> list[Tensor]:
    """DPM-Solver++(2M) of docs/spec.md#solver in float64, from the float32 levels that the release
    stores."""
    exact = levels(steps, shift)
    times = [int(1000 * sigma) for sigma in exact]
    sigmas = [float(np.float32(sigma)) for sigma in [*exact, 0.0]]

    def lam(sigma: float) -> float:
        if sigma in (0.0, 1.0):
            return math.inf if sigma == 0 else -math.inf
        return math.log(1 - sigma) - math.log(sigma)

    z = noise.double()
    states, previous = [z], z
    for k in range(steps):
        x0 = z - sigmas[k] * velocity(z, times[k]).double()
        step = lam(sigmas[k + 1]) - lam(sigmas[k])
        toward = x0
        if 1 < k < steps - 1:  # at k = 1 the step before was infinite, and nothing is left of it
            before = lam(sigmas[k]) - lam(sigmas[k - 1])
            toward = x0 + step / (2 * before) * (x0 - previous)
        c = -(1 - sigmas[k + 1]) * (math.exp(-step) - 1)
        z = sigmas[k + 1] / sigmas[k] * z + c * toward
        previous = x0
        states.append(z)
    return states


def curved(z: Tensor, time: int) -> Tensor:
    """A velocity that depends on state and time, and on neighbours in the state."""
    return torch.sin(z + time / 300) + 0.3 * z.roll(1, -1) - 0.2 * z.roll(1, 0)


# -- schedule --------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.floats(0.5, 12))
def test_levels_and_truncated_times(steps: int, shift: float) -> None:
    schedule = Schedule.released(steps, shift)
    expected = levels(steps, shift)
    assert schedule.sigmas.dtype == np.float32 and schedule.times.dtype == np.int64
    assert schedule.sigmas.tolist() == [float(np.float32(s)) for s in [*expected, 0.0]]
    assert schedule.times.tolist() == [int(1000 * s) for s in expected]


def test_the_release_and_the_shortest() -> None:
    schedule = Schedule.released()
    assert len(schedule.times) == 50 and schedule.times[:2].tolist() == [1000, 997]
    assert 1000 * levels(50, 8)[1] == pytest.approx(997.455, abs=1e-3)
    assert (np.diff(schedule.sigmas) < 0).all()
    only = Schedule.released(1)
    assert only.sigmas.tolist() == [1, 0] and only.times.tolist() == [1000]


def test_many_steps_repeat_truncated_times() -> None:
    times = Schedule.released(1000, 8).times
    assert len(set(times.tolist())) < 700
    assert (np.diff(times) <= 0).all()


IMPOSSIBLE = [(0, 8), (-3, 8), (1001, 8), (4, 0), (4, -1), (4, math.nan)]


@pytest.mark.parametrize(("steps", "shift"), IMPOSSIBLE)
def test_impossible_schedules_are_refused(steps: int, shift: float) -> None:
    with pytest.raises(LumosXError, match=f"1 to 1000 steps .* got {steps} and {shift}"):
        Schedule.released(steps, shift)


# -- sampler ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "shift"),
    [(1, 8), (2, 8), (3, 8), (4, 8), (7, 3), (14, 8), (20, 1), (50, 8), (200, 8)],
)
def test_the_solver_of_the_specification(steps: int, shift: float) -> None:
    noise = solvers.initial_noise(0, SHAPE)
    states = list(solvers.sample(curved, noise, Schedule.released(steps, shift)))
    expected = solve(curved, noise, steps, shift)
    assert [state.step for state in states] == list(range(steps + 1))
    assert {state.steps for state in states} == {steps}
    sigmas = [*levels(steps, shift), 0.0]
    for state, wanted, sigma in zip(states, expected, sigmas, strict=True):
        assert state.sigma == pytest.approx(sigma, abs=1e-7)
        assert state.latents.dtype == torch.float32
        assert float((state.latents.double() - wanted).abs().max()) < 1e-5, state.step


def test_the_solver_is_of_second_order() -> None:
    """Control: the comparison above tells it from its first-order neighbour."""
    noise = solvers.initial_noise(0, SHAPE).double()
    sigmas, z = [*levels(20, 8), 0.0], noise
    for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
        z = z + (there - here) * curved(z, int(1000 * here))
    last = list(solvers.sample(curved, noise, Schedule.released(20)))[-1].latents
    assert float((last - z).abs().max()) > 1e-2


def test_the_network_is_told_the_times_in_order() -> None:
    told: list[tuple[int, Tensor]] = []

    def velocity(z: Tensor, time: int) -> Tensor:
        told.append((time, z))
        return curved(z, time)

    schedule = Schedule.released(1000)  # many times repeat
    noise = solvers.initial_noise(1, (1, 1, 2, 2)).double()
    states = list(solvers.sample(velocity, noise, schedule))
    assert [time for time, _ in told] == schedule.times.tolist()
    assert all(isinstance(time, int) for time, _ in told)
    for (_, seen), state in zip(told, states, strict=False):
        assert torch.equal(seen, state.latents)


def test_a_consumer_that_stops_stops_the_work() -> None:
    calls = 0

    def velocity(z: Tensor, time: int) -> Tensor:
        nonlocal calls
        calls += 1
        return curved(z, time)

    noise = solvers.initial_noise(0, SHAPE)
    states = solvers.sample(velocity, noise, Schedule.released(9))
    first = next(states)
    assert first.step == 0 and torch.equal(first.latents, noise) and calls == 0
    for wanted in (1, 2, 3):
        assert next(states).step == wanted and calls == wanted
    states.close()  # type: ignore[attr-defined]
    assert list(states) == [] and calls == 3


def test_states_are_not_overwritten_later() -> None:
    states, copies = [], []
    for state in solvers.sample(curved, solvers.initial_noise(0, SHAPE), Schedule.released(5)):
        states.append(state.latents)
        copies.append(state.latents.clone())
    assert all(torch.equal(a, b) for a, b in zip(states, copies, strict=True))


def test_velocities_may_be_bfloat16() -> None:
    """Their steps are taken in float32 all the same."""
    noise = solvers.initial_noise(0, SHAPE)

    def rounded(z: Tensor, time: int) -> Tensor:
        return curved(noise, time).bfloat16()

    states = list(solvers.sample(rounded, noise.bfloat16(), Schedule.released(6)))
    assert {state.latents.dtype for state in states} == {torch.float32}
    expected = solve(rounded, noise.bfloat16(), 6, 8)
    assert float((states[-1].latents.double() - expected[-1]).abs().max()) < 1e-5


# -- noise and guidance ----------------------------------------------------------------------------


def test_noise_belongs_to_its_seed_alone() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    batch = [solvers.initial_noise(seed, SHAPE) for seed in range(4)]
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    torch.manual_seed(2)
    assert torch.equal(torch.randn(SHAPE), batch[2])
    assert torch.equal(solvers.initial_noise(2, SHAPE), batch[2])
    assert len({noise.sum().item() for noise in batch}) == 4
    assert batch[0].dtype == torch.float32
    many = solvers.initial_noise(5, (100_000,))
    assert abs(float(many.mean())) < 0.02 and abs(float(many.std()) - 1) < 0.02


def test_guidance() -> None:
    conditional, null = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 0.5])
    for guidance in (0.0, 1.0, 6.0, -2.0):
        expected = [1 + guidance * 2, 0.5 + guidance * -1.5]
        branches = guidance_branches(guidance)
        found = combined(branches, [conditional, null][: len(branches)])
        assert found.tolist() == expected
        if len(branches) == 2:  # the released expression, bit by bit
            assert torch.equal(found, null + guidance * (conditional - null))


# -- training (docs/spec.md#training) --------------------------------------------------------------


@pytest.mark.parametrize("references", [0, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_training_loss(references: int, weighted: bool) -> None:
    x0, noise, answer = (solvers.initial_noise(seed, (3, *SHAPE)) for seed in (1, 2, 3))
    time = torch.tensor([0.4, 500.25, 999.9])
    table = torch.rand(1000, generator=torch.Generator().manual_seed(4))
    extra = torch.full((3, SHAPE[0], references, *SHAPE[2:]), 1e6)  # no loss looks at these
    told: list[Tensor] = []

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        told.extend((x_t, t))
        return torch.cat([answer + 0.1 * x_t, extra], dim=2)

    loss = flow.training_loss(model, x0, noise, time, table if weighted else None)
    assert loss.shape == (3,)
    assert told[1].tolist() == [0, 500, 999]
    for b in range(3):
        s = time[b].item() / 1000  # not truncated
        clean, eps = x0[b].double(), noise[b].double()
        x_t = (1 - s) * clean + s * eps
        torch.testing.assert_close(told[0][b].double(), x_t, atol=1e-6, rtol=0)
        error = answer[b].double() + 0.1 * x_t - (eps - clean)
        expected = sum(value**2 for value in error.flatten().tolist()) / error.numel()
        if weighted:
            expected *= table[int(time[b])].item()
        assert loss[b].item() == pytest.approx(expected, rel=1e-5)


def test_a_perfect_model_has_no_loss() -> None:
    x0, noise = solvers.initial_noise(1, (2, *SHAPE)), solvers.initial_noise(2, (2, *SHAPE))
    loss = flow.training_loss(lambda x, t: noise - x0, x0, noise, torch.tensor([3.0, 700.0]))
    assert loss.tolist() == [0, 0]


@given(st.floats(0, 1000), st.integers(64, 1280), st.integers(64, 1280), st.integers(0, 30))
def test_time_shift(time: float, height: int, width: int, quads: int) -> None:
    frames, scale = 4 * quads + 1, 1.3

    def shifted(ratio: float) -> float:
        t = time / 1000
        return 1000 * ratio * t / (1 + (ratio - 1) * t)

    space = max(math.sqrt(height * width / 512**2), 1.0)
    length = 1.0 if frames == 1 else math.sqrt(frames // 4 + 1)
    sizes = {"height": height, "width": width, "num_frames": frames, "scale": scale}
    given_time = torch.tensor([time], dtype=torch.float64)
    dynamic = flow.shift_time(given_time, **sizes)  # type: ignore[arg-type]
    assert dynamic.item() == pytest.approx(shifted(space * length * scale), abs=1e-9)
    fixed = flow.shift_time(given_time, **sizes, mode="fixed")  # type: ignore[arg-type]
    assert fixed.item() == pytest.approx(shifted(scale), abs=1e-9)

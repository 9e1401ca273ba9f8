"""Says how far two computations may be apart on any processor: budgets from data, not by hand.

Floats: the order of a sum is the processor's, so the exact answer is computed in float64, plain
torch's own error is measured on the machine at hand, and twice that is allowed.
Values in e4m3: one that lies at a boundary between two codes may fall to either side. Such flips
are counted, and each must be explained by where its unrounded value lies.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure

FLOOR = 4 * torch.finfo(torch.float32).eps
"""Relative error that is always allowed, for plain torch may happen to make none: of a few
roundings to float32."""
ROUNDINGS = 32
"""Roundings to float32 of a tensor's largest value, each half an eps of it, by which what goes into
e4m3 may differ from one processor to another."""
FLIPS = 1 / 500
"""Share of values that may flip. A boundary is near, by the number above, for about one in a
thousand values spread over e4m3's range; flips are rarer still. Two may flip among however few."""


def relative(actual: Tensor, exact: Tensor) -> float:
    """|actual - exact| / |exact| in the 2-norm."""
    assert actual.shape == exact.shape, (actual.shape, exact.shape)
    if not actual.numel():
        return 0.0
    actual, exact = actual.detach(), exact.detach()
    return float((actual.double() - exact).norm() / exact.norm())


def assert_within_budget(
    name: str, actual: Tensor, plain: Tensor, exact: Tensor, times: float = 2
) -> None:
    """At most twice plain torch's error, or so many times; both are printed."""
    assert actual.dtype == plain.dtype and exact.dtype == torch.float64
    assert actual.isfinite().all(), f"{name}: not finite"
    found, allowed = relative(actual, exact), max(times * relative(plain, exact), FLOOR)
    print(f"{name}: error {found:.2e}, allowed {allowed:.2e}")
    assert found <= allowed, f"{name}: error {found:.2e}, allowed {allowed:.2e}"


def in_float64(model: LumosX) -> LumosX:
    """A copy that computes in float64 throughout, of inputs in float64."""
    copy = LumosX(model.config, torch.float64).double().requires_grad_(False)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def widened(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Inputs of a model in float64, those of its structure too."""
    return tuple(
        Structure(*widened(x)) if isinstance(x, Structure) else _widened(x) for x in inputs
    )


def _widened(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


Loss = Callable[..., Tensor]
"""Of tensors of one dtype, in which it computes throughout."""


def assert_gradients_within_budget(actual: Loss, plain: Loss, given: dict[str, Tensor]) -> None:
    """Of two losses by each of `given`; the exact ones are those of `plain` in float64."""
    values = list(given.values())
    gradients = (
        gradients_of(actual, values),
        gradients_of(plain, values),
        gradients_of(plain, [x.double() for x in values]),
    )
    for name, *each in zip(given, *gradients, strict=True):
        assert_within_budget(f"gradient by {name}", *each)


def gradients_of(loss: Loss, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in given]
    return torch.autograd.grad(loss(*leaves), leaves)


def assert_same_codes(name: str, found: Tensor, expected: Tensor, unrounded: Tensor) -> int:
    """Of two tensors in e4m3, of which the second is made of `unrounded` (before it is saturated).

    They may differ by one neighbouring code, in few places, and only where the unrounded value is
    at the boundary between the two. Returns in how many places they do.
    """
    assert found.shape == expected.shape == unrounded.shape, name
    assert found.dtype == expected.dtype == torch.float8_e4m3fn, name
    apart = (places(found) - places(expected)).abs()
    flips = apart > 0
    count, allowed = int(flips.sum()), max(2, int(FLIPS * flips.numel()))
    assert not count or int(apart.max()) == 1, f"{name}: {int(apart.max())} codes apart"
    assert count <= allowed, f"{name}: {count} of {flips.numel()} flipped, allowed {allowed}"
    boundary = (found.double() + expected.double()) / 2
    off = (unrounded.double() - boundary).abs()[flips]
    near = not count or float(off.max()) <= reach(unrounded)
    assert near, f"{name}: {off.max():.1e} off a boundary"
    return count


def reach(unrounded: Tensor | np.ndarray) -> float:
    """How near to a boundary another processor's value may be on its other side."""
    return ROUNDINGS * torch.finfo(torch.float32).eps / 2 * float(abs(unrounded).max())


def places(values: Tensor) -> Tensor:
    """Of e4m3 values among all of them, counted from zero."""
    assert not values.isnan().any()
    code = values.view(torch.uint8).int()
    return torch.where(code < 128, code, 128 - code)

"""Guidance: the velocity of a step as a weighted sum over branches."""

import math
from collections.abc import Sequence

from torch import Tensor

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.mechanisms.mechanism import Branch


def check_branches(branches: Sequence[Branch]) -> None:
    """Raise LumosXError where there is no branch, or where the weights do not sum to 1."""
    total = math.fsum(branch.weight for branch in branches)
    if not branches or not math.isclose(total, 1.0, rel_tol=0, abs_tol=1e-9):
        raise BadInput(f"branches: the weights must sum to 1, got {total} of {len(branches)}")


def combined(branches: Sequence[Branch], velocities: Sequence[Tensor]) -> Tensor:
    """Add up the branches' velocities with their weights.

    Written from the last branch on, as v_n + sum of weight_i * (v_i - v_n): the same, because the
    weights sum to 1, and for a prompt and a null branch it is the released expression, bit by bit.
    """
    *others, last = velocities
    total = last
    for branch, velocity in zip(branches, others, strict=False):
        total = total + branch.weight * (velocity - last)
    return total

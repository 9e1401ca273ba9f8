"""Two models in FP8 compared code by code: a flip is counted where it is made, and goes no further.

One flip changes all that comes after it, by more than floats may differ. So what a first run rounds
is noted; where a second run rounds, its codes are compared with those, which then take their place.
What is left between the two is float32's own error.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lumosx_rt.calibration import simulate
from lumosx_rt.kernels.qdq import PLAIN, Qdq, quantize
from tests.helpers.budget import assert_same_codes

WIDE = Qdq(quantize, lambda x8, scale, dtype: x8.double() * scale.double())
"""There and back in float64, whatever dtype is asked."""


class PutRight:
    """Compares what is rounded with what a first run rounded, in its order."""

    def __init__(self, made: list[tuple[Tensor, Tensor]]) -> None:
        self.made, self.calls, self.flips = made, 0, 0

    def __call__(self, codes: Tensor) -> Tensor:
        """The first run's codes in place of these."""
        assert self.calls < len(self.made), "more is rounded than at first"
        first, unrounded = self.made[self.calls]
        self.flips += assert_same_codes(f"rounding {self.calls}", codes, first, unrounded)
        self.calls += 1
        return first

    def wrapped(self, qdq: Qdq) -> Qdq:
        return qdq._replace(quantize=lambda x, scale: self(qdq.quantize(x, scale)))


class Roundings:
    """What a simulation rounds to e4m3, with what it is made of."""

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While the block runs."""

        def noting(x: Tensor, scale: Tensor | float) -> Tensor:
            codes = quantize(x, scale)
            self.made.append((codes, x.detach().double() / scale))
            return codes

        with pytest.MonkeyPatch.context() as on:
            on.setattr(simulate, "quantize", noting)
            on.setattr(simulate, "PLAIN", PLAIN._replace(quantize=noting))
            yield

    @contextmanager
    def again(self) -> Iterator[PutRight]:
        """For a second run, which rounds as often."""
        put_right = PutRight(self.made)
        yield put_right
        assert put_right.calls == len(self.made), "less is rounded than at first"
        print(f"{put_right.flips} flips in {put_right.calls} roundings")


class Program(torch.fx.Interpreter):
    """Runs a traced program whose codes are put right."""

    def __init__(self, program: torch.fx.GraphModule, put_right: PutRight) -> None:
        super().__init__(program)
        self.put_right = put_right

    def run_node(self, n: torch.fx.Node) -> object:
        out = super().run_node(n)
        if n.op != "call_function" or not isinstance(out, Tensor) or not _is_e4m3(out):
            return out
        args, _ = self.fetch_args_kwargs_from_env(n)
        return out if _is_e4m3(args[0]) else self.put_right(out)  # of weights, another view


def _is_e4m3(x: Tensor) -> bool:
    return x.dtype == torch.float8_e4m3fn

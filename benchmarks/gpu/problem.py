"""A problem: one operation on one shape, the ways to do it, and what is exactly right.

No time is taken of a way whose output is wrong: against float64, on sampled rows, it may err at
most twice as much as the plain formulation in torch does in the same precision.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.timing import time_of
from lumosx_rt.reference.backbones.cost import Work

MOST = 2.0  # times the plain formulation's error


class WrongOutput(Exception):
    """A way's output is not finite or not near enough; says which and by how much."""


@dataclass(frozen=True)
class Way:
    """One way to do it."""

    run: Callable[[], Any]
    plain: str
    """The way that is plain torch in the same precision."""
    work: Work = field(default_factory=Work)


@dataclass
class Problem:
    """What can be done in several ways."""

    device: torch.device
    exact: Callable[[], tuple[Tensor, ...]]
    """The sampled rows in float64, a tensor for each part of the output."""
    pick: Callable[[Any], tuple[Tensor, ...]]
    """The same rows of what a way returns."""
    ways: dict[str, Way]
    _errors: dict[str, list[float]] = field(default_factory=dict)

    @cached_property
    def _expected(self) -> tuple[Tensor, ...]:
        return self.exact()

    def errors(self, name: str) -> list[float]:
        """Relative errors of a way, part by part. Raises WrongOutput where it is not finite."""
        if name not in self._errors:
            run = self.ways[name].run
            output = run() if self.device.type == "cpu" else poisoned(run)
            for tensor in tensors(output):
                if not tensor.float().isfinite().all():
                    raise WrongOutput(f"'{name}' returned values that are not finite")
            pairs = zip(self.pick(output), self._expected, strict=True)
            self._errors[name] = [relative_error(a, e) for a, e in pairs if e.numel()]
        return self._errors[name]

    def judged(self, name: str) -> dict[str, Any]:
        """Largest error, the plain formulation's, and the worst ratio of a part's two."""
        errors, plain = self.errors(name), self.errors(self.ways[name].plain)
        ratio = max(e / max(p, 1e-30) for e, p in zip(errors, plain, strict=True))
        return {"error": max(errors), "plain_error": max(plain), "ratio": ratio}

    def timed(self, name: str) -> dict[str, Any]:
        """A way's error, time and rate. Raises WrongOutput instead where it errs too much."""
        found = self.judged(name)
        if not found["ratio"] <= MOST:
            raise WrongOutput(
                f"relative error {found['error']:.2e} is {found['ratio']:.1f} times that of "
                f"'{self.ways[name].plain}', {found['plain_error']:.2e}; at most {MOST:g} is right"
            )
        taken = time_of(self.ways[name].run, self.device)
        return taken | self.ways[name].work.rates(sum(taken["ms"]) / 2) | found


def poisoned(run: Callable[[], Any]) -> Any:
    """Run twice, what the first run returned made not a number in between.

    The second finds the same memory: what it does not write is no longer what was right.
    """
    first = run()
    for tensor in tensors(first):
        if tensor.itemsize > 1:
            tensor.fill_(torch.nan)
        else:  # 8-bit formats are filled by their bits
            tensor.view(torch.uint8).fill_(0xFF)
    del first
    return run()


class Latest:
    """Keeps what was built last, and lets go of it before it builds anything else."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._value: Any = None

    def __call__(self, build: Callable[..., Any], *arguments: Any) -> Any:
        if self._key != (build, *arguments):
            self.forget()
            self._value = build(*arguments)
            self._key = (build, *arguments)
        return self._value

    def forget(self) -> None:
        self._key, self._value = (), None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, in the 2-norm and float64."""
    difference = actual.double() - expected.double()
    return float(difference.norm() / expected.double().norm().clamp_min(1e-30))


def tensors(output: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples that hold floating-point numbers."""
    if isinstance(output, Tensor):
        if output.numel() and output.is_floating_point():
            yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from tensors(part)

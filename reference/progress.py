"""How long work says what it does: lines for people, and how far it is."""

from collections.abc import Callable, Mapping
from typing import Protocol

Report = Callable[[str], None]
"""Takes a line that says what is being done."""


class Progress(Protocol):
    """Takes how far a part of the work is."""

    def __call__(
        self, part: str, done: int, total: int, metrics: Mapping[str, float] = ..., /
    ) -> None:
        """part: what is being done; metrics: what was measured on the way, by name."""


def quiet(part: str, done: int, total: int, metrics: Mapping[str, float] | None = None, /) -> None:
    """A `Progress` that nobody sees."""

"""A mechanism: how the pictures and words of a request enter the video.

A mechanism is a value with functions, handed to whatever uses it. It never imports a backbone.
What is above `reference/sampling` sees `Layout`, `Branch` and named tensors, and no type of one
mechanism.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

Axes = tuple[str | int, ...]
"""The names of a tensor's axes; a number is a fixed size, "2*x" is twice the axis x."""


class Layout(Protocol):
    """Shapes of one request: hashable, derived from a handful of integers, no tensors."""

    @property
    def key(self) -> str:
        """A short name that `Mechanism.layout_from_key` reads back."""

    @property
    def video_frames(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def references(self) -> int: ...

    @property
    def frame_tokens(self) -> int: ...

    @property
    def video_tokens(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def attended_pairs(self) -> int:
        """(query, key) pairs of self-attention."""

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Groups of reference frames, and members of the largest."""

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that an engine is built for a range of, by axis."""

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Requests whose layouts have equal keys can go through a backend together."""

    @property
    def seeds_share_references(self) -> bool:
        """Whether references never see the video, so that all seeds can share them."""


class Binding(Protocol):
    """What the model reads of one request: tensors that do not change over the steps."""

    @property
    def references(self) -> Tensor:
        """Clean latents [references, channels, rows, columns]; rows and columns are the video's."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the texts is not read, one sentence each."""

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with words for people: what to say where it is not finite."""


class Branch(NamedTuple):
    """One stream of a step. The guided velocity is the sum of weight * velocity over branches."""

    weight: float
    prompt: str
    """The field of the binding that holds the embeddings this branch reads."""


class Control(NamedTuple):
    """A wrong answer on purpose: what a comparison must be able to tell from the right one."""

    name: str
    layout: Any
    binding: Any
    exceeds_gate: bool
    """Whether its error must exceed the gate, or it must only differ from the right answer."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """How pictures and words enter the video, as functions."""

    name: str
    axes: Mapping[str, Axes]
    """Its inputs of the graph beside latents and time, in order."""
    limits: Mapping[str, tuple[int, int]]
    """Least and most of every dynamic axis that it adds or bounds."""
    layout: Callable[[Any, tuple[int, int, int]], Any]
    """(scene, (latent frames, token rows, token columns)) -> `Layout`."""
    layout_from_key: Callable[[str], Any]
    bind: Callable[..., Any]
    """(prepared scene, layout, video size, text encoder, VAE, negative prompt) -> `Binding`."""
    inputs: Callable[[Sequence[Any], Sequence[Any], Sequence[str], int], dict[str, Tensor]]
    """(layouts, bindings, prompts, head_dim), one a stream -> the tensors that `axes` names."""
    random: Callable[[Any, Sequence[Any], Any], dict[str, Tensor]]
    """(sizes of the model, layouts, generator) -> such tensors of random numbers, for tracing."""
    arguments: Callable[[Mapping[str, Tensor]], tuple[Any, ...]]
    """The named tensors -> what the model takes after latents and time."""
    branches: Callable[[float], tuple[Branch, ...]]
    """The streams of a step at a guidance; their weights sum to 1."""
    amplified: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """Tensors made so large that what they do shows even in random weights."""
    quirks: Sequence[Any] = ()
    """What its released weights depend on, each with how to undo it: name, spec, undone."""
    controls: Callable[[Any, Any, Any], Sequence[Control]]
    """(layout, binding, sizes of the model) -> requests that are wrong on purpose."""

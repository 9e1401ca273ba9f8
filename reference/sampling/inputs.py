"""What makes velocities: a backend is bound to one request and then called once per step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lumosx_rt.reference.mechanisms.lumosx.binding import Binding
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure, structure_of


@dataclass(frozen=True)
class Inputs:
    """What stays the same over the steps of one call: everything but latents and time.

    text: [streams, text_len, text_dim]; references: [streams, references, channels, rows, columns];
    template: [streams, references, text_len]; shape: of the latents, [streams, seeds, channels,
    frames, rows, columns]. A stream is one (request, guidance branch).
    """

    text: Tensor
    references: Tensor
    template: Tensor
    structure: Structure
    shape: tuple[int, ...]


class Denoiser(Protocol):
    """A backend bound to one call's inputs."""

    def __call__(self, latents: Tensor, time: int) -> Tensor:
        """Velocity of latents [streams, seeds, channels, frames, rows, columns], on the CPU.

        The result may be overwritten by the next call.
        """


class Backend(Protocol):
    """A model that runs somewhere."""

    def bind(self, inputs: Inputs) -> Denoiser: ...

    def describe(self) -> dict[str, str]:
        """What runs where, for reports."""


def guided_inputs(layout: SceneLayout, binding: Binding, seeds: int, head_dim: int) -> Inputs:
    """Both guidance branches of one request as two streams: the prompt's, then the null one.

    The null branch keeps the references and the word template (docs/spec.md#guidance).
    """
    channels, rows, columns = binding.references.shape[1:]

    def both(x: Tensor) -> Tensor:
        return x.unsqueeze(0).expand(2, *x.shape).contiguous()

    return Inputs(
        text=torch.stack([binding.text, binding.null_text]),
        references=both(binding.references),
        template=both(binding.template),
        structure=structure_of([layout, layout], head_dim),
        shape=(2, seeds, channels, layout.video_frames, rows, columns),
    )


def plain_inputs(
    layouts: Sequence[SceneLayout], bindings: Sequence[Binding], seeds: int, head_dim: int
) -> Inputs:
    """Several requests without guidance, one stream each."""
    channels, rows, columns = bindings[0].references.shape[1:]
    return Inputs(
        text=torch.stack([b.text for b in bindings]),
        references=torch.stack([b.references for b in bindings]),
        template=torch.stack([b.template for b in bindings]),
        structure=structure_of(layouts, head_dim),
        shape=(len(layouts), seeds, channels, layouts[0].video_frames, rows, columns),
    )

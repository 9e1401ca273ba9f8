"""The model's inputs in the order it takes them, and under the graph's names."""

from typing import Any

from torch import Tensor

from lumosx_rt.reference.mechanisms.lumosx.structure import Structure
from lumosx_rt.reference.sampling.inputs import INPUTS, Inputs, random_inputs


def model_inputs(
    config: Any, layouts: list[Any], seeds: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Structure]:
    """Random latents, time, text, references, template and structure."""
    latents, time, inputs = random_inputs(config, layouts, seeds, seed)
    return latents, time, *inputs.arguments()


def feed_of(inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Such inputs under the graph's names."""
    *tensors, structure = inputs
    return dict(zip(INPUTS, [*tensors, *structure], strict=True))


def bound(text: Tensor, references: Tensor, template: Tensor, structure: Any, shape: Any) -> Inputs:
    """What stays the same over the steps of a call, from the model's arguments."""
    tensors = {"text": text, "references": references, "template": template}
    return Inputs(tensors | (structure._asdict() if structure else {}), tuple(shape))

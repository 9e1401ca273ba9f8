"""Model -> torch.export: one program for every grouping and size, which ONNX and packages share.

Streams, seeds, frames, height, width, references, groups and members are all dynamic; a scene
without references is the same program with zero reference frames.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lumosx_rt.reference.backbones.ops import Ops
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.mechanism import Axes, Mechanism
from lumosx_rt.reference.sampling.inputs import (
    DEFAULT,
    axes_of,
    limits_of,
    random_inputs,
)  # fmt: skip

EXAMPLE = ("3x4x9+2+2.3", "3x4x9+3+2.2")  # layouts that a program is traced with


class Positional(nn.Module):
    """A model that takes `INPUTS` as so many tensors."""

    def __init__(self, model: LumosX, mechanism: Mechanism = DEFAULT) -> None:
        super().__init__()
        self.model, self.mechanism = model, mechanism

    def forward(self, *inputs: Tensor) -> Tensor:
        latents, time, *rest = inputs
        named = dict(zip(self.mechanism.axes, rest, strict=True))
        velocity: Tensor = self.model(latents, time, *self.mechanism.arguments(named))
        return velocity


def trace(model: LumosX, ops: Ops, mechanism: Mechanism = DEFAULT) -> torch.export.ExportedProgram:
    """Return the program of a model with these operations, its inputs named and ordered as
    `INPUTS`.

    Traced on the device the model is on; the model itself comes back as it was.
    """
    layouts = [mechanism.layout_from_key(key) for key in EXAMPLE]
    latents, time, inputs = random_inputs(model.config, layouts, seeds=3, mechanism=mechanism)
    example = inputs.feed(latents, time).values()
    device = model.head.head.weight.device
    own, training = model.ops, model.training
    model.ops = ops
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                Positional(model, mechanism),
                tuple(tensor.to(device) for tensor in example),
                dynamic_shapes=(_dynamic_shapes(mechanism),),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    finally:
        model.ops = own
        model.train(training)


def _dynamic_shapes(mechanism: Mechanism) -> tuple[dict[int, Any], ...]:
    from torch.export import Dim

    limits = limits_of(mechanism)
    dims = {name: Dim(name, min=least, max=most) for name, (least, most) in limits.items()}

    def shape_of(axes: Axes) -> dict[int, Any]:
        shape: dict[int, Any] = {}
        for i, axis in enumerate(axes):
            if axis in dims:
                shape[i] = dims[str(axis)]
            elif str(axis).startswith("2*"):
                shape[i] = 2 * dims[str(axis)[2:]]
        return shape

    return tuple(shape_of(axes) for axes in axes_of(mechanism).values())

"""Model -> torch.export: one program for every grouping and size, which ONNX and packages share.

Streams, seeds, frames, height, width, references, groups and members are all dynamic; a scene
without references is the same program with zero reference frames.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.ops import Ops
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import ROPE_TABLE, SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure, structure_of

INPUTS = ("latents", "time", "text", "references", "template", *Structure._fields)
OUTPUT = "velocity"
MAX_STREAMS, MAX_SEEDS = 64, 64
MAX_REFERENCES = 64

# the names of each input's axes; a number is fixed, "2*x" is twice the axis x
AXES: dict[str, tuple[str | int, ...]] = {
    "latents": ("streams", "seeds", "channels", "frames", "2*height", "2*width"),
    "time": ("streams",),
    "text": ("streams", "text_len", "text_dim"),
    "references": ("streams", "references", "channels", "2*height", "2*width"),
    "template": ("streams", "references", "text_len"),
    "rope_video": (2, "frames", "height", "width", "pairs"),
    "rope_references": (2, "streams", "references", "height", "width", "pairs"),
    "tile_pool": ("tiles", "height", "width"),
    "bias_tiles": ("height", "width"),
    "group_index": ("streams", "groups", "members"),
    "group_mask": ("streams", "groups", "members"),
    "group_inverse": ("streams", "references"),
}
LIMITS = {
    "streams": (1, MAX_STREAMS),
    "seeds": (1, MAX_SEEDS),
    "frames": (1, ROPE_TABLE),
    "height": (1, ROPE_TABLE),
    "width": (1, ROPE_TABLE),
    "references": (0, MAX_REFERENCES),
    "groups": (1, MAX_REFERENCES),
    "members": (1, ROPE_TABLE + MAX_REFERENCES),  # with visibility off, a group holds every frame
    "tiles": (1, (ROPE_TABLE // 8) ** 2),
}


class Positional(nn.Module):
    """The model with `INPUTS` as so many tensors: the structure's fields too."""

    def __init__(self, model: LumosX) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        velocity: Tensor = self.model(*inputs[:_BESIDE], Structure(*inputs[_BESIDE:]))
        return velocity


_BESIDE = len(INPUTS) - len(Structure._fields)  # inputs that stand before the structure's


def trace(model: LumosX, ops: Ops) -> torch.export.ExportedProgram:
    """The program of a model with these operations, its inputs named and ordered as `INPUTS`.

    Traced on the device the model lies on; the model itself comes back as it was.
    """
    layout = SceneLayout(video_frames=3, height=4, width=9, lone=2, subjects=(2, 3))
    other = replace(layout, lone=3, subjects=(2, 2))
    example = feed_of(model_inputs(model.config, [layout, other], seeds=3)).values()
    device = model.head.head.weight.device
    own, training = model.ops, model.training
    model.ops = ops
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                Positional(model),
                tuple(tensor.to(device) for tensor in example),
                dynamic_shapes=(_dynamic_shapes(),),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    finally:
        model.ops = own
        model.train(training)


def model_inputs(
    config: LumosXConfig, layouts: list[SceneLayout], seeds: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Structure]:
    """Random inputs of the model for streams of these layouts, as the model takes them."""
    first, streams = layouts[0], len(layouts)
    random = torch.Generator("cpu").manual_seed(seed)
    size = (2 * first.height, 2 * first.width)
    references, text_len = first.references, config.text_len
    return (
        torch.randn(streams, seeds, config.in_dim, first.video_frames, *size, generator=random),
        torch.randint(1, 1000, (streams,), generator=random),
        torch.randn(streams, text_len, config.text_dim, generator=random),
        torch.randn(streams, references, config.in_dim, *size, generator=random),
        torch.randn(streams, references, text_len, generator=random),
        structure_of(layouts, config.head_dim),
    )


def feed_of(inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """The model's positional inputs under the program's names."""
    *tensors, structure = inputs
    return dict(zip(INPUTS, [*tensors, *structure], strict=True))


def check_shapes(
    shapes: Mapping[str, Sequence[int]], limits: Mapping[str, Sequence[int]] = LIMITS
) -> None:
    """Compiled code trusts its inputs: raises LumosXError where shapes contradict `AXES`.

    shapes: of every input, by its name. An axis must have one size everywhere, within `limits`
    (least and most).
    """
    sizes: dict[str, int] = {}
    for name, axes in AXES.items():
        shape = tuple(shapes[name])
        if len(shape) != len(axes):
            raise LumosXError(f"{name}: got shape {shape}, its axes are {axes}")
        for axis, found in zip(axes, shape, strict=True):
            factor, _, bare = str(axis).rpartition("*")
            size, rest = divmod(found, int(factor or 1))
            least, most = limits.get(bare, (0, found))
            known = axis if isinstance(axis, int) else sizes.setdefault(bare, size)
            if rest or size != known or not least <= size <= most:
                raise LumosXError(
                    f"{name}: got shape {shape}, {axis} does not fit ({bare}: {known})"
                )


def _dynamic_shapes() -> tuple[dict[int, Any], ...]:
    from torch.export import Dim

    dims = {name: Dim(name, min=least, max=most) for name, (least, most) in LIMITS.items()}

    def axes(name: str) -> dict[int, Any]:
        shape: dict[int, Any] = {}
        for i, axis in enumerate(AXES[name]):
            if axis in dims:
                shape[i] = dims[str(axis)]
            elif str(axis).startswith("2*"):
                shape[i] = 2 * dims[str(axis)[2:]]
        return shape

    return tuple(axes(name) for name in INPUTS)

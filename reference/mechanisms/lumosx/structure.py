"""A layout as tensors: the structural inputs of the model and of every exported graph."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.mechanisms.lumosx.layout import POOLING_BLOCK, SceneLayout


class Structure(NamedTuple):
    """Structural inputs shared by every block. Streams may differ in grouping, not in shape.

    rope_video: [2, frames, height, width, pairs], cosine and sine of the rotary angles.
    rope_references: [2, streams, references, height, width, pairs].
    tile_pool: float32 [tiles, height, width], weights that average queries over 8x8 tiles.
    bias_tiles: int64 [height, width], the tile whose score biases each reference token.
    group_index: int64 [streams, groups, members], frames: the video's first, then references.
    group_mask: bool [streams, groups, members], False where padded.
    group_inverse: int64 [streams, references], where each reference stands in groups x members.
    """

    rope_video: Tensor
    rope_references: Tensor
    tile_pool: Tensor
    bias_tiles: Tensor
    group_index: Tensor
    group_mask: Tensor
    group_inverse: Tensor

    def to(self, device: torch.device | str) -> "Structure":
        return Structure(*(t.to(device) for t in self))


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs of the time, row and column axes (docs/spec.md#r2pe): 22, 21, 21 for heads of
    128."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def rope_table(positions: Tensor, head_dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Cosine and sine of the rotary angles: positions [..., 3] -> [2, ..., head_dim / 2].

    Angles are formed in float64. Pairs are laid out time, row, column (docs/spec.md#r2pe).
    """
    angles = []
    for axis, size in enumerate(rope_axes(head_dim)):
        exponents = torch.arange(0, 2 * size, 2, dtype=torch.float64) / (2 * size)
        angles.append(positions[..., axis, None].double() * (1.0 / 10000.0**exponents))
    angle = torch.cat(angles, dim=-1)
    return torch.stack([angle.cos(), angle.sin()]).to(dtype)


def structure_of(
    layouts: Sequence[SceneLayout], head_dim: int, dtype: torch.dtype = torch.float32
) -> Structure:
    """Return the structural tensors of streams that agree in frames, size and number of references.

    `dtype` is that of the rope tables: rotation is computed in it (float64 as released).
    Raises LumosXError where the streams disagree.
    """
    first = layouts[0]
    for layout in layouts:
        for name in ("video_frames", "height", "width", "references", "raster_tiling"):
            if getattr(layout, name) != getattr(first, name):
                raise BadInput(
                    f"streams of one call must agree in {name}: {layout.key} and {first.key}"
                )
    size = (first.height, first.width)
    rope = torch.stack([_positions(layout) for layout in layouts])
    video, references = rope.split([first.video_frames, first.references], dim=1)

    groups = max(layout.grouping.index.shape[0] for layout in layouts)
    members = max(layout.grouping.index.shape[1] for layout in layouts)
    index = np.zeros((len(layouts), groups, members), np.int64)
    mask = np.zeros((len(layouts), groups, members), np.bool_)
    inverse = np.zeros((len(layouts), first.references), np.int64)
    for s, grouping in enumerate(layout.grouping for layout in layouts):
        rows, columns = grouping.index.shape
        index[s, :rows, :columns] = grouping.index
        mask[s, :rows, :columns] = grouping.mask
        mask[s, rows:, 0] = True  # an empty group sees one frame, and nobody reads it
        inverse[s] = grouping.inverse // columns * members + grouping.inverse % columns

    tile_pool = first.pooling_tiles == np.arange(first.tiles)[:, None]
    return Structure(
        rope_video=rope_table(video[0], head_dim, dtype),
        rope_references=rope_table(references, head_dim, dtype),
        tile_pool=torch.from_numpy(tile_pool).float().reshape(-1, *size) / POOLING_BLOCK**2,
        bias_tiles=torch.from_numpy(first.bias_tiles).long().reshape(size),
        group_index=torch.from_numpy(index),
        group_mask=torch.from_numpy(mask),
        group_inverse=torch.from_numpy(inverse),
    )


def _positions(layout: SceneLayout) -> Tensor:
    return torch.from_numpy(layout.positions).reshape(-1, layout.height, layout.width, 3)

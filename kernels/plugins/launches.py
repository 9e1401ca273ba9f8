"""What to launch for a plugin: the kernel, its grid and its counts, of sizes that may be symbols.

Sizes are whatever adds, multiplies and divides: Python's integers, or TensorRT's expressions.
`cdiv` is the ceiling division that belongs to them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from lumosx_rt.kernels import qk_norm_rope, relational_attention, relational_cross_attention
from lumosx_rt.kernels.compile import Specialization
from lumosx_rt.kernels.plugins import entries
from lumosx_rt.kernels.relational_cross_attention import TILES_AT_ONCE
from lumosx_rt.kernels.signatures import POINTERS
from lumosx_rt.kernels.tiles import AttentionTiles, RowTiles, attention_settings, settings

Size = Any
Shapes = Mapping[str, Sequence[Size]]
CeilDiv = Callable[[Size, Size], Size]


class Launch(NamedTuple):
    """A kernel to compile, its grid (x, y, z), and its counts in the kernel's order."""

    specialization: Specialization
    grid: tuple[Size, Size, Size]
    counts: tuple[Size, ...]


def relational_self(
    shapes: Shapes, dtype: torch.dtype, heads: int, head_dim: int, sm: int, cdiv: CeilDiv
) -> Launch:
    """Self-attention of video and references; shapes by the names of `entries.relational_self`."""
    tiles = _attention_tiles("relational_attention", dtype, head_dim, sm)
    sizes = _self_sizes(shapes)
    video_items = sizes["batch"] * heads * cdiv(sizes["video_tokens"], tiles.block_m)
    frames = sizes["streams"] * sizes["references"]
    items = video_items + frames * heads * cdiv(sizes["frame_tokens"], tiles.block_m)
    counts = (items, video_items, *_self_counts(sizes))
    constants = _self_constants(heads, head_dim, tiles)
    return Launch(
        _attention(entries.relational_self, dtype, constants, tiles), (items, 1, 1), counts
    )


def video_self(
    shapes: Shapes, dtype: torch.dtype, heads: int, head_dim: int, sm: int, cdiv: CeilDiv
) -> Launch:
    """Self-attention of the video alone, over everything."""
    tiles = _attention_tiles("relational_attention", dtype, head_dim, sm)
    sizes = _self_sizes(shapes)
    items = sizes["batch"] * heads * cdiv(sizes["video_tokens"], tiles.block_m)
    constants = _self_constants(heads, head_dim, tiles)
    specialization = _attention(entries.video_self, dtype, constants, tiles)
    return Launch(specialization, (items, 1, 1), (items, *_self_counts(sizes)))


def bias_table(
    shapes: Shapes, dtype: torch.dtype, heads: int, head_dim: int, ratio: float, cdiv: CeilDiv
) -> Launch:
    """Return the table of MCAM; no tiles to choose, so it is the same on every architecture."""
    streams, references, text_len = shapes["template"]
    tiles, height, width = shapes["tile_pool"]
    constants = relational_cross_attention.table_constants(heads, head_dim, ratio)
    types = dict.fromkeys(("q", "k", "table"), POINTERS[dtype])
    types |= dict.fromkeys(("template", "tile_pool"), POINTERS[torch.float32])
    types |= {"bias_tiles": "*i64"}
    specialization = _specialization(entries.bias_table, types, constants)
    grid = (cdiv(tiles, TILES_AT_ONCE), heads, streams * references)
    return Launch(specialization, grid, (references, height, width, tiles, text_len))


def reference_cross(
    shapes: Shapes, dtype: torch.dtype, heads: int, head_dim: int, sm: int, cdiv: CeilDiv
) -> Launch:
    """Cross-attention of the references, given the table."""
    tiles = _attention_tiles("relational_cross_attention", dtype, head_dim, sm)
    streams, _, references, pooling_tiles, text_len = shapes["table"]
    height, width = shapes["bias_tiles"]
    items = streams * references * heads * cdiv(height * width, tiles.block_m)
    constants = relational_cross_attention.constants(heads, head_dim, tiles, True)
    constants = {n: constants[n] for n in constants if n not in ("BIASED", "DESCRIPTORS")}
    specialization = _attention(entries.reference_cross, dtype, constants, tiles)
    counts = (items, height * width, references, pooling_tiles, text_len)
    return Launch(specialization, (items, 1, 1), counts)


def norm_rope(
    shapes: Shapes, dtype: torch.dtype, heads: int, dim: int, eps: float, sm: int, cdiv: CeilDiv
) -> Launch:
    """QK norm and rotation; the table has one row of angles, or one for every batch entry."""
    batch, tokens, _ = shapes["x"]
    tiles = RowTiles(**settings(sm, "qk_norm_rope"))
    constants = qk_norm_rope.constants(dim, heads, tiles, 1, 1, eps)
    constants = {n: constants[n] for n in constants if not n.startswith("HAS_")}
    types = dict.fromkeys(("x", "weight", "out"), POINTERS[dtype])
    types |= {"rope": POINTERS[torch.float32]}
    rows, angles = shapes["rope"][1], tokens * (dim // heads // 2)
    # one row for all: no stride. A batch of one never takes the step
    counts = (tokens, rows // batch * angles, rows * angles)
    specialization = _specialization(
        entries.norm_rope,
        types,
        constants,
        tiles.warps(2 * constants["BLOCK_HEADS"] * constants["BLOCK_PAIRS"]),
    )
    return Launch(specialization, (cdiv(tokens, tiles.rows), batch, 1), counts)


def _self_sizes(shapes: Shapes) -> dict[str, Size]:
    batch, video_tokens = shapes["q"][:2]
    streams, groups, members = shapes["group_index"]
    height, width = shapes["bias_tiles"]
    return {
        "batch": batch,
        "streams": streams,
        "references": shapes["group_inverse"][1],
        "video_tokens": video_tokens,
        "condition_tokens": shapes["ck"][1],
        "frame_tokens": height * width,
        "seeds": batch // streams,
        "groups": groups,
        "members": members,
    }


def _self_counts(sizes: Mapping[str, Size]) -> tuple[Size, ...]:
    names = ("video_tokens", "condition_tokens", "frame_tokens", "seeds", "groups", "members")
    return tuple(sizes[name] for name in names)


def _self_constants(heads: int, head_dim: int, tiles: AttentionTiles) -> dict[str, Any]:
    constants = relational_attention.constants(heads, head_dim, tiles, False, False)
    kept = ("SCALE", "HEADS", "HEAD_DIM", "BLOCK_D", "BLOCK_M", "BLOCK_N")
    return {name: constants[name] for name in kept}


def _attention_tiles(op: str, dtype: torch.dtype, head_dim: int, sm: int) -> AttentionTiles:
    """Return tiles without descriptors and persistent programs, which plugins cannot have."""
    return attention_settings(sm, op, str(dtype).removeprefix("torch."), head_dim, plain=True)


def _attention(
    kernel: Any, dtype: torch.dtype, constants: Mapping[str, Any], tiles: AttentionTiles
) -> Specialization:
    types = {"bias_tiles": "*i64", "group_index": "*i64", "group_mask": "*u8"}
    types |= {"group_inverse": "*i64"}
    tensors = ("q", "k", "v", "cq", "ck", "cv", "table", "out", "cout")
    types |= dict.fromkeys(tensors, POINTERS[dtype])
    return _specialization(kernel, types, constants, tiles.num_warps, tiles.num_stages)


def _specialization(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
) -> Specialization:
    return Specialization(
        name=kernel.__name__,
        kernel=kernel,
        types={n: types.get(n, "i32") for n in kernel.arg_names if n not in constants},
        constants=constants,
        num_warps=num_warps,
        num_stages=num_stages,
    )

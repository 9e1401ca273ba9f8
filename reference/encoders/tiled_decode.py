"""The VAE's decoder in chunks of time and tiles of space, equal to decoding the whole.

Time: every causal convolution keeps the last two frames of its input, so latent frames go
through one by one. Space: the first convolution and the middle block, whose attention is
global, see whole latent frames (they are small); the upsampling blocks run on tiles that
carry a halo as wide as the receptive field, so that what a tile keeps does not depend on how the
frame was cut. The trade-off not taken: overlapping tiles that are blended are cheaper,
but show seams and depend on the cut.

    chunks    frame by frame, all its tiles: pixels leave as they are made, every cache stays
    pieces    tile by tile, all its frames: one tile's cache at a time
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lumosx_rt.reference.errors import BadInput

_KEPT_FRAMES = 2  # of its input, for a causal convolution over three frames
Cache = list[Any]


class Piece(NamedTuple):
    """Pixels of one tile of one latent frame, and where they belong: [frames, rows, columns]."""

    frames: slice
    rows: slice
    columns: slice
    pixels: Tensor


class Box(NamedTuple):
    """A tile in latent cells: what it keeps, and what it must see."""

    rows: slice
    columns: slice
    seen_rows: slice
    seen_columns: slice


def halo(decoder: Any) -> int:
    """Latent cells on each side that a tile must see: the radius of the upsampling blocks.

    Counted backwards from a pixel; doubling the resolution halves a radius, rounded up.
    """
    radius = _radius(decoder.conv_out)
    for block in reversed(decoder.up_blocks):
        if block.upsamplers is not None:
            radius = -(-(radius + _radius(block.upsamplers[0].resample[1])) // 2)
        radius += sum(_radius(r.conv1) + _radius(r.conv2) for r in block.resnets)
    return radius


def scale(decoder: Any) -> tuple[int, int]:
    """Pixel frames per latent frame (the first makes one), and pixels per latent cell's side."""
    upsamplers = [b.upsamplers[0] for b in decoder.up_blocks if b.upsamplers is not None]
    return 2 ** sum(u.mode == "upsample3d" for u in upsamplers), 2 ** len(upsamplers)


def boxes(height: int, width: int, tile: tuple[int, int] | None, margin: int) -> list[Box]:
    """Cut a latent frame into tiles of at most tile = (rows, columns) cells, each with a margin.

    Raises LumosXError for a tile of less than one cell.
    """
    if tile is None:
        tile = (height, width)
    if min(tile) < 1:
        raise BadInput(f"tile must be at least 1 x 1 latent cells, got {tile[0]} x {tile[1]}")
    return [
        Box(rows, columns, _seen(rows, margin, height), _seen(columns, margin, width))
        for rows in _cuts(height, tile[0])
        for columns in _cuts(width, tile[1])
    ]


def chunks(
    model: Any, latents: Tensor, tile: tuple[int, int] | None = None, margin: int | None = None
) -> Iterator[Tensor]:
    """Decode frame by frame: yields pixels [clips, 3, frames, height, width], not clamped.

    latents: [clips, channels, frames, rows, columns], not normalised. margin: as `halo`.
    """
    decoder = model.decoder
    rows, columns = latents.shape[-2:]
    cuts = boxes(rows, columns, tile, halo(decoder) if margin is None else margin)
    middle, caches, cell = _cache(model), [_cache(model) for _ in cuts], scale(decoder)[1]
    for frame in range(latents.shape[2]):
        features = _features(model, latents[:, :, frame : frame + 1], middle)
        whole: Tensor | None = None
        for box, cache in zip(cuts, caches, strict=True):
            pixels = _cropped(decoder, features, box, cache, first=frame == 0)
            if len(cuts) == 1:
                whole = pixels
                break
            if whole is None:
                whole = pixels.new_empty((*pixels.shape[:3], rows * cell, columns * cell))
            whole[:, :, :, *_times((box.rows, box.columns), cell)] = pixels
        assert whole is not None
        yield whole


def pieces(
    model: Any, latents: Tensor, tile: tuple[int, int] | None = None, margin: int | None = None
) -> Iterator[Piece]:
    """Decode tile by tile: yields every tile of every latent frame, not clamped."""
    decoder = model.decoder
    rows, columns = latents.shape[-2:]
    cuts = boxes(rows, columns, tile, halo(decoder) if margin is None else margin)
    per_frame, per_cell = scale(decoder)
    middle = _cache(model)
    features = [
        _features(model, latents[:, :, frame : frame + 1], middle)
        for frame in range(latents.shape[2])
    ]
    for box in cuts:
        cache, start = _cache(model), 0
        place = _times((box.rows, box.columns), per_cell)
        for frame, feature in enumerate(features):
            pixels = _cropped(decoder, feature, box, cache, first=frame == 0)
            frames = slice(start, start + (per_frame if frame else 1))
            yield Piece(frames, place[0], place[1], pixels)
            start = frames.stop


def _features(model: Any, frame: Tensor, cache: Cache) -> Tensor:
    """One latent frame through the first convolution and the middle block."""
    place = [0]
    x = _causal(model.decoder.conv_in, model.post_quant_conv(frame), cache, place)
    out: Tensor = model.decoder.mid_block(x, feat_cache=cache, feat_idx=place)
    return out


def _cropped(decoder: Any, features: Tensor, box: Box, cache: Cache, first: bool) -> Tensor:
    """A tile's features, halo included, to the pixels that the tile keeps."""
    x = features[:, :, :, box.seen_rows, box.seen_columns]
    place = [0]
    for block in decoder.up_blocks:
        x = block(x, feat_cache=cache, feat_idx=place, first_chunk=first)
    x = _causal(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)), cache, place)
    kept = [
        slice(inner.start - outer.start, inner.stop - outer.start)
        for inner, outer in ((box.rows, box.seen_rows), (box.columns, box.seen_columns))
    ]
    return x[:, :, :, *_times(kept, scale(decoder)[1])]


def _causal(conv: Any, x: Tensor, cache: Cache, place: list[int]) -> Tensor:
    """Convolve causally, continuing from the last frames, which are cached."""
    index, before = place[0], cache[place[0]]
    seen = x if before is None else torch.cat([before, x], dim=2)
    out: Tensor = conv(x, before)
    cache[index] = seen[:, :, -_KEPT_FRAMES:].clone()
    place[0] += 1
    return out


def _cache(model: Any) -> Cache:
    """Room for the frames of every causal convolution of the decoder, filled from the front."""
    return [None] * sum(1 for m in model.decoder.modules() if hasattr(m, "_padding"))


def _radius(conv: Any) -> int:
    return int(conv.kernel_size[-1]) // 2


def _cuts(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _seen(kept: slice, margin: int, size: int) -> slice:
    return slice(max(kept.start - margin, 0), min(kept.stop + margin, size))


def _times(cells: tuple[slice, slice] | list[slice], factor: int) -> tuple[slice, ...]:
    return tuple(slice(s.start * factor, s.stop * factor) for s in cells)

"""Tile sizes of every kernel on every architecture: `tiles.json`, as typed values.

An entry's `source` says whether it was measured or only compiled (no spills, fits). Sweeps write
their winners back into that file.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lumosx_rt.kernels.numerics import INTERPRETED

ARCHITECTURES = (80, 89, 90, 100, 120)
FILE = Path(__file__).with_name("tiles.json")
Capability = tuple[int, int]


@dataclass(frozen=True)
class AttentionTiles:
    """How attention is cut up."""

    block_m: int
    """Queries of a tile."""
    block_n: int
    """Keys of a tile."""
    num_warps: int
    num_stages: int
    """Tiles of keys and values in flight."""
    programs_per_sm: int = 0
    """Persistent programs, each doing many tiles of queries; 0: a program for every tile."""
    descriptors: bool = False
    """Load keys and values by the copy engine (sm_90 and later)."""
    warp_specialize: bool = False
    """Separate warps for loading; needs descriptors, and sm_100: sm_90 gets the same code."""

    @property
    def plain(self) -> bool:
        """Whether a launch needs nothing but its arguments."""
        return not (self.descriptors or self.programs_per_sm)


@dataclass(frozen=True)
class RowTiles:
    """How row-wise kernels are cut up: tokens a program does one after the other, and warps."""

    rows: int
    num_warps: int
    """At least; more where a row is so wide that a thread would hold over 16 of its values."""

    def warps(self, width: int) -> int:
        """Warps for rows of this width, a power of two."""
        return max(self.num_warps, width // 512)


def architecture(capability: Capability) -> int:
    """Return the compiled-for architecture whose code and tiles a GPU takes: (8, 6) -> 89, (12, 1)
    -> 120.

    Raises ValueError for GPUs older than Ampere or newer than any known.
    """
    sm = capability[0] * 10 + capability[1]
    if sm == 86:  # shared memory as on 89, not as on 80
        return 89
    fits = [known for known in ARCHITECTURES if known // 10 == sm // 10 and known <= sm]
    if not fits:
        known = ", ".join(f"sm_{known}" for known in ARCHITECTURES)
        raise ValueError(f"no kernels for sm_{sm}; they exist for {known} and their families")
    return fits[-1]


def row_tiles(op: str, device: torch.device) -> RowTiles:
    """Tiles of a row-wise kernel on a device."""
    tried = _TRIED.get(op)
    if isinstance(tried, RowTiles):
        return tried
    if INTERPRETED:
        return RowTiles(rows=3, num_warps=4)
    return RowTiles(**settings(architecture_of(device), op))


def attention_tiles(op: str, dtype: str, head_dim: int, device: torch.device) -> AttentionTiles:
    """Tiles of an attention kernel on a device; dtype: float32, float16, bfloat16 or e4m3."""
    tried = _TRIED.get(op)
    if isinstance(tried, AttentionTiles):
        return tried
    if INTERPRETED:
        return AttentionTiles(block_m=16, block_n=32, num_warps=4, num_stages=1, programs_per_sm=3)
    return attention_settings(architecture_of(device), op, dtype, head_dim)


_TRIED: dict[str, AttentionTiles | RowTiles] = {}


@contextmanager
def trying(op: str, tiles: AttentionTiles | RowTiles) -> Iterator[None]:
    """Inside it, an op has these tiles in every data type, whatever the file says: for sweeps."""
    _TRIED[op] = tiles
    try:
        yield
    finally:
        del _TRIED[op]


def attention_settings(
    sm: int, op: str, dtype: str, head_dim: int, *, plain: bool = False
) -> AttentionTiles:
    """Return what `tiles.json` says; heads of up to 64 and of up to 128 channels have entries.

    plain: without descriptors and persistent programs, for callers that have neither. Where the
    entry has one, the fastest without is beside it, as ".../plain".
    """
    width = next(width for width in (64, 128) if head_dim <= width)
    width_key = f"{op}/{dtype.replace('bfloat16', 'half').replace('float16', 'half')}/{width}"
    tiles = AttentionTiles(**settings(sm, width_key))
    if plain and not tiles.plain:
        return AttentionTiles(**settings(sm, f"{width_key}/plain"))
    return tiles


def settings(sm: int, key: str) -> dict[str, Any]:
    """Return one entry of the file, without its source."""
    entry = _table()[f"sm_{sm}"][key]
    return {name: value for name, value in entry.items() if name != "source"}


def chosen_self_attention(sm: int) -> tuple[str, str]:
    """Return which implementation of self-attention in half precision is used, and on what
    evidence."""
    entry = _table()[f"sm_{sm}"]["self_attention"]
    return entry["name"], entry["source"]


def e4m3_attention_pays(sm: int) -> bool:
    """Tell whether self-attention in e4m3 was measured to be faster than the chosen one in half
    precision."""
    entry = _table()[f"sm_{sm}"].get("self_attention/e4m3")
    return entry is not None and bool(entry["faster"])


@cache
def architecture_of(device: torch.device) -> int:
    return architecture(torch.cuda.get_device_capability(device))


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 2 where kernels are interpreted."""
    if INTERPRETED:
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


_FROM: list[Path] = [FILE]


def read_from(file: Path) -> None:
    """Take tiles from another file of the same form: a run's own winners."""
    _FROM[:] = [file]
    _table.cache_clear()


def file_here() -> Path:
    """Return the file that tiles are taken from."""
    return _FROM[0]


@cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    table: dict[str, dict[str, dict[str, Any]]] = json.loads(file_here().read_text("utf-8"))
    return table

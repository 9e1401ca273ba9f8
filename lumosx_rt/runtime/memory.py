"""What a request needs of memory, known before it starts, and how it is made to fit a limit.

Bytes beside what is held anyway (program, libraries, weights). V video tokens and C reference
tokens over all streams, each stream's own v and c; D width, F hidden width, H heads, L words;
G groups of at most M pictures of T tokens; e bytes a number.

    denoise    onnxruntime, whose arena keeps buffers of every size apart:
                 e (H V (v + c) + 3 H G (M T)^2 + 4 H C L + H V L + 10 (V + C) D + 2 (V + C) F)
               torch packages and plans, where attention leaves no table behind:
                 e (12 (V + C) D + max(2 (V + C) F, H C L))
               kept by lossy shortcuts, keys of N blocks and their zeros; residuals:
                 e (2 N C + V) D; e 4 V D, and arenas of their own for first and other blocks,
                 together 7/4 of one
    decode     the largest of the decoder's last stages, for the pixels p of a tile with its halo:
                 4 b 4 p 21, or 56 where torch unrolls convolutions; of tiles 25, or 84
               and (rows columns)^2 4 4 for the attention over a frame; then what is kept
    pictures   4 b p 22
    text       D' (13.5 L + L^2 / 32) 4 for a text encoder of width D' with T5's proportions

There are two budgets. What runs on a GPU is in its memory: activations, the engine's weights, the
encoders where they are there. This computer's then holds the program, and videos as they are made.
Captured graphs take no more than that: what warmed them up is given back before a capture.

Constants are fitted to measured peaks (`benchmarks/speed/runtime.py` says how far off they are);
those of GPUs are not measured. On a GPU that launches nothing (`tests/gpu/nullgpu`) what torch's
allocator reserves is 0.65 to 0.97 of the formula.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lumosx_rt.calibration.formats import Format
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.encoders import tiled_decode as tiles
from lumosx_rt.reference.errors import TooLittleMemory
from lumosx_rt.reference.mechanisms.mechanism import Layout
from lumosx_rt.reference.numbers import whole_number
from lumosx_rt.reference.sampling.memory_plan import GIB, MemoryPlan, Peaks, Tile
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy
from lumosx_rt.reference.scenes.video_size import VideoSize

FLOAT_BYTES = 4
LIBRARIES_BYTES = 330 << 20  # diffusers, transformers and what torch sets up when first used
SMALLEST_TILE = 8
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 2**10, "mi": 2**20, "gi": GIB}
_MOST_BYTES = 1 << 60
_DECODED_FRAMES = 4  # pixel frames that the decoder makes at a time
_UNROLLED = 20480  # channels x frames x rows up to which torch unrolls a convolution on a CPU


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """The sizes that decide what requests need."""

    config: LumosXConfig
    backend: str
    number_bytes: int
    """Of the backend's activations."""
    layout: Layout
    size: VideoSize
    requests: int = 1
    """That go through the backend together."""
    seeds: int = 1
    branches: int = 2
    """2 with guidance."""
    held_bytes: int = 0
    """Program, libraries, weights that are not on a GPU, what may be remembered."""
    on_gpu: bool = False
    """The backend runs on a GPU."""
    encoders_on_gpu: bool = False
    gpu_held_bytes: int = 0
    """Weights that are on it: the transformer's, and the VAE's with the encoders."""
    text_encoder_bytes: int = 0
    vae_width: int = 96
    """Channels of the VAE's last stage."""
    vae_halo: int = 13
    """Latent cells that a tile sees on each side."""
    lossy: Lossy = EXACT


def number_bytes(backend: str, numbers: Format) -> int:
    """Return the bytes of a backend's activations; onnxruntime computes in float32 whatever it
    stores."""
    return FLOAT_BYTES if backend == "onnxruntime" else numbers.number_bytes


def plan(
    need: MemoryNeed, limit_bytes: int | None = None, gpu_limit_bytes: int | None = None
) -> MemoryPlan:
    """Return what a need needs, changed as little as makes it fit the limits.

    Every change gives the same video: bit-exact, or within the rounding of another order of sums.
    Raises LumosXError with the numbers where nothing makes it fit.
    """
    for found in _ways(need):
        device = found.device and replace(found.device, limit_bytes=gpu_limit_bytes)
        found = replace(found, limit_bytes=limit_bytes, device=device)
        if found.fits:
            return found
    lacks = ["--max-memory"] if not super(MemoryPlan, found).fits else []
    lacks += ["--max-device-memory"] if found.device and not found.device.fits else []
    raise TooLittleMemory(
        f"memory: needs {found}; allow more with {' and '.join(lacks)}, or take fewer seeds or "
        "frames, a smaller size, or fewer pictures"
    )


def _ways(need: MemoryNeed) -> Iterator[MemoryPlan]:
    """From the usual way to the one that takes least; what costs least time is tried first."""
    for frees in (False, True):
        for tile in _tiles(need):
            for sequential in (False, True) if need.branches > 1 else (False,):
                yield _way(need, frees, sequential, tile)


def _way(need: MemoryNeed, frees: bool, sequential: bool, tile: Tile | None) -> MemoryPlan:
    text, clips = need.text_encoder_bytes, clips_bytes(need)
    denoise = denoise_bytes(need, 1 if sequential else need.branches) + kept_bytes(need)
    arena = denoise if need.backend == "onnxruntime" else 0  # it gives nothing back
    encoders = {
        "text": text + _text_bytes(need.config),
        "pictures": _pictures_bytes(need) if need.layout.references else 0,
        "decode": decode_bytes(need, tile) - clips,
    }

    def peaks(held: int, denoises: bool, encodes: bool) -> dict[str, int]:
        """Of one of the two memories, by what is done in it."""
        base = held + (text if encodes and not frees else 0)
        own = encoders if encodes else dict.fromkeys(encoders, 0)
        return {
            "held_bytes": held,
            "text_bytes": held + own["text"],
            "pictures_bytes": base + own["pictures"],
            "denoise_bytes": base + (denoise if denoises else 0),
            "decode_bytes": base + (arena if denoises else 0) + own["decode"],
        }

    here = peaks(need.held_bytes, not need.on_gpu, not need.encoders_on_gpu)
    here["decode_bytes"] += clips
    there = peaks(need.gpu_held_bytes, need.on_gpu, need.encoders_on_gpu)
    return MemoryPlan(
        **here,
        device=Peaks(**there) if need.on_gpu or need.encoders_on_gpu else None,
        sequential=sequential,
        tile=tile,
        frees_text_encoder=frees,
    )


def _tiles(need: MemoryNeed) -> Iterator[Tile | None]:
    """Whole frames, then halves of them, as long as that saves anything beside the halo."""
    yield None
    least = decode_bytes(need, None)
    _, rows, columns = need.size.latent
    while max(rows, columns) > SMALLEST_TILE:
        rows, columns = (max(-(-n // 2), min(n, SMALLEST_TILE)) for n in (rows, columns))
        needed = decode_bytes(need, (rows, columns))
        if needed < least:
            least = needed
            yield rows, columns


def denoise_bytes(need: MemoryNeed, branches: int) -> int:
    """Activations of one call of the transformer with so many guidance branches."""
    config, layout = need.config, need.layout
    streams = need.requests * branches
    own, seen = layout.video_tokens, layout.tokens
    video, condition = streams * need.seeds * own, streams * layout.references * layout.frame_tokens
    heads, words = config.num_heads, config.text_len
    groups, members = layout.group_sizes
    rows = video + condition
    biased, hidden = heads * condition * words, rows * config.ffn_dim
    if need.backend == "onnxruntime":
        grouped = streams * groups * (members * layout.frame_tokens) ** 2
        attended = heads * (video * seen + 3 * grouped + video * words) + 4 * biased
        arena = (attended + 10 * rows * config.dim + 2 * hidden) * need.number_bytes
        return arena * 7 // 4 if need.lossy.skips_blocks else arena
    return (12 * rows * config.dim + max(2 * hidden, biased)) * need.number_bytes


def kept_bytes(need: MemoryNeed) -> int:
    """Return what shortcuts keep from one step to the next, for all guidance branches."""
    layout, streams = need.layout, need.requests * need.branches
    condition = streams * layout.references * layout.frame_tokens
    video, numbers = streams * need.seeds * layout.video_tokens, 0
    if need.lossy.reuses_keys:
        numbers += 2 * need.config.num_layers * condition + video
    if need.lossy.skips_blocks:
        numbers += 4 * video
    return numbers * need.config.dim * need.number_bytes


def decode_bytes(need: MemoryNeed, tile: Tile | None) -> int:
    """Decoding one clip, tile by tile, with the frames that come of it."""
    frames, rows, columns = need.size.latent
    boxes = tiles.boxes(rows, columns, tile, need.vae_halo)
    height, width = (
        8 * max(seen.stop - seen.start for seen in sides)
        for sides in ([b.seen_rows for b in boxes], [b.seen_columns for b in boxes])
    )
    stages = [
        _stage_bytes(need.vae_width, made, height, width, tile is not None)
        for made in ([1, _DECODED_FRAMES] if frames > 1 else [1])
    ]
    attention = 4 * FLOAT_BYTES * (rows * columns) ** 2
    kept = frames * rows * columns * 4 * need.vae_width * FLOAT_BYTES
    return max(attention, *stages) + kept + clips_bytes(need)


def clips_bytes(need: MemoryNeed) -> int:
    """Return the finished frames, which are never on a GPU."""
    size = need.size
    return need.requests * need.seeds * size.frames * size.height * size.width * 3


def _stage_bytes(channels: int, frames: int, height: int, width: int, tiled: bool) -> int:
    unrolled = channels * (frames + 2) * height <= _UNROLLED
    copies = (84 if tiled else 56) if unrolled else (25 if tiled else 21)
    return copies * channels * frames * height * width * FLOAT_BYTES


def _pictures_bytes(need: MemoryNeed) -> int:
    return 22 * need.vae_width * need.size.height * need.size.width * FLOAT_BYTES


def _text_bytes(config: LumosXConfig) -> int:
    words, width = config.text_len, config.text_dim
    return int(width * (13.5 * words + words**2 / 32)) * FLOAT_BYTES


def parse_bytes(text: str | int, name: str = "max_memory") -> int:
    """Read `8GiB`, `500MB`, `8000000B`, or an integer of bytes. Raises LumosXError for all else.

    A text needs its unit: "8" is more often meant as 8 GiB than as 8 bytes.
    """
    if not isinstance(text, str):
        return whole_number(text, name, 1, _MOST_BYTES)
    match = re.fullmatch(
        r"(\d{1,20}(?:\.\d{1,20})?) *(?:([kmg]i?)b?|b)", text.strip().lower(), re.ASCII
    )
    found = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if not 0 < found <= _MOST_BYTES:
        raise TooLittleMemory(
            f"{name}: got '{text:.60}', accepted are a number and its unit, like 8GiB, 500MB "
            "or 8000000B"
        )
    return found


def parse_limit(text: str | int | None, name: str) -> int | None:
    """Do as `parse_bytes`; None for no limit."""
    return None if text is None else parse_bytes(text, name)


def resident_bytes() -> int:
    """Memory this process holds now."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * resource.getpagesize()
    except (OSError, ImportError):
        pass

        return peak_memory_bytes()


def held_at_load() -> int:
    """Return what the process holds, with the libraries that come with the encoders."""
    return resident_bytes() + (0 if "diffusers" in sys.modules else LIBRARIES_BYTES)


def peak_memory_bytes() -> int:
    """Most memory this process has held so far."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)

"""Stage encoders: what of a video is no step, at the sizes of Wan2.1, with random weights.

    decode    latents to 81 frames of 480x832: fp32 and bf16, as stored and channels last, in tiles
    encode    a reference of that size
    text      512 tokens by umT5-XXL in bf16

bf16 is compared with fp32's frames; it is the engine's own gate that decides there.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.book import Row
from benchmarks.gpu.cases import Bench, Case
from benchmarks.gpu.scale import Scale, layouts_of

DECODES = {  # dtype, memory format, tile in latent cells
    "decode fp32": (torch.float32, torch.contiguous_format, None),
    "decode bf16": (torch.bfloat16, torch.contiguous_format, None),
    "decode bf16, channels last": (torch.bfloat16, torch.channels_last_3d, None),
    "decode fp32, channels last": (torch.float32, torch.channels_last_3d, None),
    "decode fp32, tiles": (torch.float32, torch.contiguous_format, (30, 52)),
}
REPEATS = 3


def cases(bench: Bench) -> Iterator[Case]:
    (key,) = bench.scale.keys(0)
    for name in DECODES:
        yield Case(name, key, partial(_decode, bench.scale, key, name))
    yield Case("bf16 against fp32", key, partial(_compared, bench.scale))
    yield Case("encode", key, partial(_encode, bench.scale, key))
    yield Case("text", key, partial(_text, bench.scale))


def vae(scale: Scale, dtype: torch.dtype) -> Any:
    """A VAE of Wan2.1's sizes with random weights, the same every time."""
    from diffusers import AutoencoderKLWan

    from lumosx_rt.reference.encoders.random import random_components
    from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder

    torch.manual_seed(0)
    if scale.rehearsal:
        small: Any = random_components(0)[2]
        return VideoAutoencoder(torch.nn.Module.to(small, dtype))
    build: Any = AutoencoderKLWan
    with scale.device:
        model = build()
    torch.nn.Module.to(model, scale.device, dtype)
    return VideoAutoencoder(model.eval().requires_grad_(False))


def _decode(scale: Scale, key: str, name: str) -> Row:
    dtype, layout, tile = DECODES[name]
    coder = vae(scale, dtype)
    # others than these have no such layout
    convs: list[Any] = [m for m in coder.model.modules() if isinstance(m, torch.nn.Conv3d)]
    for conv in convs:
        conv.to(memory_format=layout)
    (of,) = layouts_of((key,))
    latents = scale.noise()(1, 16, of.video_frames, 2 * of.height, 2 * of.width)
    return _timed(scale, lambda: coder.decode_frames_uint8(latents, tile))


def _compared(scale: Scale) -> Row:
    from lumosx_rt.runtime.devices.vae_precision import in_bfloat16

    _, verdict = in_bfloat16(vae(scale, torch.float32))
    return {"verdict": str(verdict), "pass": verdict.passes}


def _encode(scale: Scale, key: str) -> Row:
    coder = vae(scale, torch.float32)
    (of,) = layouts_of((key,))
    pictures = torch.zeros(1, 3, 16 * of.height, 16 * of.width, dtype=torch.uint8)
    return _timed(scale, lambda: coder.encode_images(pictures))


def _text(scale: Scale) -> Row:
    import transformers

    library: Any = transformers
    words, sizes = 512, {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240}
    sizes |= {"num_layers": 24, "num_heads": 64}
    if scale.rehearsal:
        words, sizes = 8, {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32}
        sizes |= {"num_layers": 1, "num_heads": 2}
    config = library.UMT5Config(**sizes, feed_forward_proj="gated-gelu")
    with scale.device:
        model = library.UMT5EncoderModel(config).to(torch.bfloat16).eval().requires_grad_(False)
    ids = torch.ones(1, words, dtype=torch.int64, device=scale.device)

    def run() -> Tensor:
        out: Tensor = model(input_ids=ids).last_hidden_state
        return out

    return _timed(scale, run)


def _timed(scale: Scale, run: Callable[[], Any]) -> Row:
    """Time by the clock, copies to the CPU included, and the most that is held meanwhile.

    A run takes seconds: three are enough, and the first, which makes plans, is apart.
    """
    on_gpu = scale.device.type == "cuda"
    ms = []
    for i in range(1 + REPEATS):
        if on_gpu and i == 1:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        ms.append(round(1e3 * (time.perf_counter() - started), 2))
    held = torch.cuda.max_memory_allocated() if on_gpu else 0
    first, *others = ms
    return {
        "first_ms": first,
        "ms": [statistics.median(others), max(others)],
        "spread_ms": round(max(others) - min(others), 2),
        "peak_gib": round(held / 2**30, 2),
    }

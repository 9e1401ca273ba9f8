"""What a model's sizes are, read from the names and shapes of its parameters."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lumosx_rt.reference.errors import BadInput, listing

_LARGEST = 1 << 20  # no width, text length or vocabulary comes near; overflow is beyond

Shapes = Mapping[str, tuple[int, ...]]


def t5_sizes(shapes: Shapes, heads: int | None = None) -> dict[str, int]:
    """Arguments of transformers' UMT5Config for an encoder with these parameters, in its names."""
    bias = r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.relative_attention_bias\.weight"
    found = {
        "vocab_size": _most(shapes, (r"shared\.weight", 0)),
        "d_model": _most(shapes, (r"shared\.weight", 1), (r"encoder\.final_layer_norm\.weight", 0)),
        "d_ff": _most(shapes, (r"encoder\.block\.\d+\.layer\.1\.DenseReluDense\.wi_0\.weight", 0)),
        "num_layers": count_blocks(shapes, r"encoder\.block\.(\d+)\."),
        "num_heads": heads or _most(shapes, (bias, 1)),
        "relative_attention_num_buckets": _most(shapes, (bias, 0)),
        "inner": _most(shapes, (r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.[qkv]\.weight", 0)),
    }
    sizes = {name: size for name, size in found.items() if size}
    if len(sizes) < len(found) or sizes["inner"] % sizes["num_heads"]:
        unknown = ", ".join(sorted(set(found) - set(sizes))) or "a whole head size"
        raise BadInput(
            f"text encoder: these are not the weights of a UMT5 encoder; they do not tell {unknown}"
        )
    sizes["d_kv"] = sizes.pop("inner") // sizes["num_heads"]
    return sizes


def vae_sizes(shapes: Shapes) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKLWan for a VAE with these parameters, in Wan2.1 names."""
    problems = []
    row: dict[int, str] = {}
    for key in shapes:
        if part := re.match(r"encoder\.downsamples\.(\d+)\.(\w+)", key):
            row.setdefault(int(part[1]), part[2])
            if part[2] == "time_conv":
                row[int(part[1])] = "time_conv"
    kinds = [row[place] for place in sorted(row)]
    levels: list[list[int]] = [[]]  # output channels of each level's residual blocks
    temporal = []
    for place, kind in zip(sorted(row), kinds, strict=True):
        if kind in ("residual", "shortcut"):
            width = shapes.get(f"encoder.downsamples.{place}.residual.6.weight", (0,))[0]
            levels[-1].append(width)
        elif kind in ("resample", "time_conv"):
            temporal.append(kind == "time_conv")
            levels.append([])
        else:
            problems.append(f"encoder.downsamples.{place} is no residual block and no resampler")
    base = shapes.get("encoder.conv1.weight", (0,))[0]
    top = shapes.get("decoder.conv1.weight", (0,))[0]
    dim_mult = [level[-1] // base if base and level else 0 for level in levels]
    blocks = {len(level) for level in levels}
    if (
        len(blocks) != 1
        or not all(dim_mult)
        or any(level[-1] % base for level in levels if base and level)
    ):
        problems.append("its levels of residual blocks are not alike")
    latent = shapes.get("conv2.weight", (0,))[0]
    pixels = shapes.get("encoder.conv1.weight", (0, 0))[1:2]
    if not (base and top and latent and pixels):
        problems.append("encoder.conv1, decoder.conv1 or conv2 is missing")
    if problems:
        raise BadInput(listing("VAE: these are not the weights of a Wan2.1 VAE", problems))
    sizes = {
        "base_dim": base,
        "z_dim": latent,
        "dim_mult": dim_mult,
        "num_res_blocks": blocks.pop(),
        "temperal_downsample": temporal,
        "in_channels": pixels[0],
        "out_channels": shapes.get("decoder.head.2.weight", pixels)[0],
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": 2 ** len(temporal),
    }
    if top // dim_mult[-1] != base:
        sizes["decoder_base_dim"] = top // dim_mult[-1]
    return sizes


def count_blocks(shapes: Shapes, numbered: str) -> int:
    """Return how many blocks the names count. A gap is counted too, so that it is reported as
    missing; a number far off the rest is not, so that one name cannot ask for a million blocks."""
    places = {int(m[1]) for key in shapes if (m := re.match(numbered, key)) and len(m[1]) < 6}
    return min(max(places, default=-1) + 1, 2 * len(places))


def _most(shapes: Shapes, *sites: tuple[str, int]) -> int | None:
    """Return the size most parameters agree on: one misshapen tensor must not mislead the rest."""
    votes = Counter(
        shape[axis]
        for pattern, axis in sites
        for key, shape in shapes.items()
        if len(shape) > axis and 0 < shape[axis] < _LARGEST and re.fullmatch(pattern, key)
    )
    return votes.most_common(1)[0][0] if votes else None

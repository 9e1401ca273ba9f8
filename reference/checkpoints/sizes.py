"""What a model's sizes are, read from the names and shapes of its parameters."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import LumosXError, listing

RELEASED_HEAD_DIM = 128  # of every released Wan2.1 and LumosX transformer

_LARGEST = 1 << 20  # no width, text length or vocabulary comes near; overflow is beyond

Shapes = Mapping[str, tuple[int, ...]]


def transformer_config(shapes: Shapes, described: Mapping[str, Any] | None = None) -> LumosXConfig:
    """The config of a transformer with these parameters, in LumosX names.

    described: entries of a config.json (LumosX, Wan2.1 or diffusers names). Heads, text length,
    MCAM strength and epsilon are not in the weights and are taken from it; without it heads are
    128 wide. Raises LumosXError where the two contradict each other, or no head size fits.
    """
    default = LumosXConfig()
    found = {
        "dim": _most(
            shapes,
            (r"patch_embedding\.(weight|bias)", 0),
            (r"text_embedding\.2\.(weight|bias)", 0),
            (r"time_embedding\.2\.(weight|bias)", 0),
            (r"head\.modulation", 2),
            (r"blocks\.\d+\.modulation", 2),
        ),
        "in_dim": _most(shapes, (r"patch_embedding\.weight", 1)),
        "ffn_dim": _most(shapes, (r"blocks\.\d+\.ffn\.0\.(weight|bias)", 0)),
        "text_dim": _most(shapes, (r"text_embedding\.0\.weight", 1)),
        "freq_dim": _most(shapes, (r"time_embedding\.0\.weight", 1)),
        "num_layers": count_blocks(shapes, r"blocks\.(\d+)\."),
    }
    channels = _most(shapes, (r"head\.head\.(weight|bias)", 0))
    found["out_dim"] = channels // 4 if channels else None
    sizes = {name: size for name, size in found.items() if size}
    about = _described(described or {}, sizes)
    dim = sizes.get("dim", default.dim)
    if "num_heads" not in about:
        if dim % RELEASED_HEAD_DIM:
            raise LumosXError(
                f"transformer: width {dim} is not a multiple of {RELEASED_HEAD_DIM}, so its number "
                "of heads is not known; put a config.json with num_heads beside the weights, "
                "or give the config"
            )
        about["num_heads"] = dim // RELEASED_HEAD_DIM
    return replace(
        default,
        **sizes,
        **about,
        qk_norm=any(re.fullmatch(r"blocks\.\d+\.\w+\.norm_[qk]\.weight", k) for k in shapes),
        cross_attn_norm=any(re.fullmatch(r"blocks\.\d+\.norm3\.weight", k) for k in shapes),
    )


def _described(values: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """What a config.json adds to the weights. Raises LumosXError where they contradict."""
    foreign = {"num_attention_heads": "num_heads", "in_channels": "in_dim"}
    foreign |= {"out_channels": "out_dim"}
    known = {foreign.get(name, name): value for name, value in values.items()}
    problems = [
        f"{name} is {known[name]}, the weights have {size}"
        for name, size in sizes.items()
        if known.get(name) not in (None, size)
    ]
    added: dict[str, Any] = {}
    for name, kind in (
        ("num_heads", int),
        ("text_len", int),
        ("mcam_ratio", float),
        ("eps", float),
    ):
        value = known.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value != kind(value):
            problems.append(f"{name} must be a number, got {value!r}")
        elif value < 0 or (kind is int and value < 1):
            problems.append(f"{name} must be positive, got {value}")
        else:
            added[name] = kind(value)
    if problems:
        raise LumosXError(listing("config.json beside the transformer", problems))
    return added


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
        raise LumosXError(
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
        raise LumosXError(listing("VAE: these are not the weights of a Wan2.1 VAE", problems))
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
    """How many blocks the names count. A gap is counted too, so that it is reported as missing;
    a number far off the rest is not, so that one name cannot ask for a million blocks."""
    places = {int(m[1]) for key in shapes if (m := re.match(numbered, key)) and len(m[1]) < 6}
    return min(max(places, default=-1) + 1, 2 * len(places))


def _most(shapes: Shapes, *sites: tuple[str, int]) -> int | None:
    """The size most parameters agree on: one misshapen tensor must not mislead the rest."""
    votes = Counter(
        shape[axis]
        for pattern, axis in sites
        for key, shape in shapes.items()
        if len(shape) > axis and 0 < shape[axis] < _LARGEST and re.fullmatch(pattern, key)
    )
    return votes.most_common(1)[0][0] if votes else None

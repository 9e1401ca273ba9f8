"""Transformers from checkpoints in any layout.

`find_bundle` says what is where, `load_transformer` makes a model of it. Tensors are memory-mapped,
or read one at a time from distributed checkpoints, so a model is never in memory twice. Nothing in
a checkpoint is run.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints import key_names as keymaps
from lumosx_rt.reference.checkpoints.bundle import Bundle, Component, find_bundle
from lumosx_rt.reference.checkpoints.sizes import Shapes, _most, count_blocks
from lumosx_rt.reference.checkpoints.state import State, assign, open_state
from lumosx_rt.reference.checkpoints.wrappers import in_common, must_be, unwrapped
from lumosx_rt.reference.errors import BadInput, listing
from lumosx_rt.reference.files import read_json


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Return the transformer's tensors in LumosX names, memory-mapped where the file allows it.

    path: a file, the folder of a model, or a bundle. Tables of rotary frequencies are dropped
    (docs/spec.md#checkpoints). Raises LumosXError for what is no checkpoint, or would run code.
    """
    return dict(_transformer_state(find_bundle(path).require("transformer")))


def transformer_shapes(source: Bundle | str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the transformer's tensors in LumosX names; the tensors are not read."""
    bundle = source if isinstance(source, Bundle) else find_bundle(source)
    return _transformer_state(bundle.require("transformer")).shapes


def load_transformer(
    source: Bundle | str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    config: LumosXConfig | None = None,
) -> LumosX:
    """A LumosX model from a bundle, a folder or a file in any known layout
    (docs/spec.md#checkpoints).

    dtype: of linears and attention; what the release keeps in float32 stays so. config: by default
    from the shapes, and from a config.json beside the weights for what shapes do not tell (heads
    are 128 wide, MCAM is 0.5 without one).
    Raises one LumosXError naming every missing, unexpected or wrongly shaped key.
    """
    bundle = source if isinstance(source, Bundle) else find_bundle(source)
    part = bundle.require("transformer")
    state = _transformer_state(part)
    must_be(state, "transformer")
    if config is None:
        about = read_json(part.config) if part.config else None
        _check_sizes(state)
        config = transformer_config(state.shapes, about)
    with torch.device("meta"):
        model = LumosX(config, dtype)
    assign(model, state)
    return model.eval().requires_grad_(False)


def _transformer_state(part: Component) -> State:
    state = open_state(part.path).renamed(lambda name: None if "freqs" in name else name)
    state = unwrapped(state, "transformer")
    if "condition_embedder.time_proj.weight" in state.shapes:
        state = state.renamed(keymaps.transformer_from_diffusers)
    return state


def _check_sizes(state: State) -> None:
    """Refuse weights that do not tell how large their model is; a default one is not theirs."""
    blocks = count_blocks(state.shapes, r"blocks\.(\d+)\.")
    if not blocks or not _width(state.shapes):
        raise BadInput(
            f"{state.source}: not the weights of a whole transformer: {in_common(state.shapes)}; "
            f"they have {blocks} blocks, and tell {'a' if _width(state.shapes) else 'no'} width"
        )


RELEASED_HEAD_DIM = 128  # of every released Wan2.1 and LumosX transformer


def transformer_config(shapes: Shapes, described: Mapping[str, Any] | None = None) -> LumosXConfig:
    """Return the config of a transformer with these parameters, in LumosX names.

    described: entries of a config.json (LumosX, Wan2.1 or diffusers names). Heads, text length,
    MCAM strength and epsilon are not in the weights and are taken from it; without it heads are
    128 wide. Raises LumosXError where the two contradict each other, or no head size fits.
    """
    default = LumosXConfig()
    found = {
        "dim": _width(shapes),
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
            raise BadInput(
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


def _width(shapes: Shapes) -> int | None:
    return _most(
        shapes,
        (r"patch_embedding\.(weight|bias)", 0),
        (r"text_embedding\.2\.(weight|bias)", 0),
        (r"time_embedding\.2\.(weight|bias)", 0),
        (r"head\.modulation", 2),
        (r"blocks\.\d+\.modulation", 2),
    )


def _described(values: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return what a config.json adds to the weights. Raises LumosXError where they contradict."""
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
        raise BadInput(listing("config.json beside the transformer", problems))
    return added

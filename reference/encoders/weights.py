"""The text encoder, its tokenizer and the VAE from weights in any layout.

Sizes come from the shapes, names go through `keymaps`, models are built on the meta device and
take the tensors as they are: nothing is in memory twice, and no code of a checkpoint is run.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lumosx_rt.reference.checkpoints import key_names as keymaps
from lumosx_rt.reference.checkpoints.bundle import Component
from lumosx_rt.reference.checkpoints.sizes import t5_sizes, vae_sizes
from lumosx_rt.reference.checkpoints.state import State, assign, open_state
from lumosx_rt.reference.checkpoints.wrappers import must_be, unwrapped
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import open_regular, read_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel

Device = torch.device | str
_SHARED_TABLE = "pos_embedding.embedding.weight"  # of Wan2.1 encoders built with shared_pos
_TABLE = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}
_TOKENIZER_LIMIT_BYTES = 1 << 28


def t5_from_wan(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    dtype: torch.dtype | None = None,
    device: Device = "cpu",
) -> "UMT5EncoderModel":
    """A text encoder from weights in Wan2.1 names, sizes from their shapes (docs/spec.md#text,
    #checkpoints).

    A position table at the top of the names serves every layer. heads: counted in the position
    table by default. dtype: as stored by default.
    Raises LumosXError naming every key that does not fit.
    """
    given = _as_state(state, "text encoder").renamed(keymaps.t5_from_wan)
    if _SHARED_TABLE in given.shapes:
        layers = t5_layers(given)
        given = given.aliased({_TABLE.format(i): _SHARED_TABLE for i in range(layers)})
        given = given.renamed(lambda name: None if name == _SHARED_TABLE else name)
    return _t5(given, {}, heads, dtype, device)


def load_t5(
    part: Component, dtype: torch.dtype | None = None, device: Device = "cpu"
) -> "UMT5EncoderModel":
    """Return the UMT5 encoder of a bundle, in Wan2.1's or transformers' names."""
    state = must_be(unwrapped(open_state(part.path), "text encoder"), "text encoder")
    if "token_embedding.weight" in state.shapes:
        return t5_from_wan(state, dtype=dtype, device=device)
    if "shared.weight" not in state.shapes:  # tied, and saved under its other name only
        state = state.renamed(lambda name: _TIED.get(name, name))
    state = state.renamed(lambda name: None if name in _TIED else name)
    about = read_json(part.config) if part.config else {}
    return _t5(state, about, None, dtype, device)


def vae_from_wan(
    state: Mapping[str, Tensor],
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    device: Device = "cpu",
) -> "AutoencoderKLWan":
    """A VAE from weights in Wan2.1 names, sizes from their shapes (docs/spec.md#vae, #checkpoints).

    latents_mean, latents_std: per channel; the released ones by default. dtype: as stored by
    default. Raises LumosXError naming every key that does not fit.
    """
    from diffusers import AutoencoderKLWan

    given = _as_state(state, "VAE")
    sizes = vae_sizes(given.shapes)
    blocks = sizes["num_res_blocks"]
    for name, values in (("latents_mean", latents_mean), ("latents_std", latents_std)):
        if values is not None:
            sizes[name] = [float(value) for value in values]
    build: Any = AutoencoderKLWan
    with torch.device("meta"):
        model = build(**sizes)
    nn.Module.to(model, dtype or given["conv1.weight"].dtype)
    named = given.renamed(lambda name: keymaps.vae_from_wan(name, blocks))
    assign(model, named, device=device)
    found: AutoencoderKLWan = model.eval().requires_grad_(False)
    return found


def autoencoder_state(part: Component) -> State:
    """A VAE's tensors in Wan2.1 names, from a file in these names or in diffusers'."""
    state = unwrapped(open_state(part.path), "VAE")
    if _in_wan_names(state):
        return state
    blocks = sum(f"decoder.up_blocks.0.resnets.{i}.conv1.weight" in state for i in range(99)) - 1
    return state.renamed(lambda name: keymaps.vae_to_wan(name, blocks))


def _in_wan_names(state: State) -> bool:
    return "encoder.conv1.weight" in state.shapes


def load_autoencoder(
    part: Component, dtype: torch.dtype | None = None, device: Device = "cpu"
) -> "AutoencoderKLWan":
    """Return the VAE of a bundle, in Wan2.1's or diffusers' names."""
    stored = must_be(unwrapped(open_state(part.path), "VAE"), "VAE")
    if _in_wan_names(stored):
        return vae_from_wan(stored, dtype=dtype, device=device)
    about = read_json(part.config) if part.config else {}
    if about.get("is_residual") or about.get("patch_size") is not None:
        raise BadInput(f"{part.path}: this is a Wan2.2 VAE; LumosX uses the one of Wan2.1")
    statistics: dict[str, Any] = {}
    for name in ("latents_mean", "latents_std"):
        values = about.get(name)
        numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
        if values is not None and not numbers:
            raise BadInput(f"{part.config}: {name} must be a list of numbers")
        statistics[name] = values
    return vae_from_wan(autoencoder_state(part), **statistics, dtype=dtype, device=device)


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, from its tokenizer.json and nothing else.

    The file is read as it stands: transformers' own T5 class would rebuild it from its vocabulary
    and lose, among others, the fall-back to bytes. Raises LumosXError if it is not there.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    if not os.path.lexists(file):
        raise BadInput(f"{folder}: no tokenizer.json (spiece.model alone is not enough)")
    open_regular(file, _TOKENIZER_LIMIT_BYTES, "tokenizer", ("json",)).close()
    build: Any = PreTrainedTokenizerFast
    try:
        inner = Tokenizer.from_file(str(file))
        pad, end = inner.id_to_token(0), inner.id_to_token(1)
        return build(tokenizer_object=inner, pad_token=pad, eos_token=end)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise BadInput(f"{file}: not a readable tokenizer ({str(error)[:200]})") from error


def t5_layers(state: State) -> int:
    """Return how many layers an encoder in transformers' names has, by its norms."""
    return sum(name.endswith(".layer.0.layer_norm.weight") for name in state.shapes)


def _t5(
    state: State,
    about: Mapping[str, Any],
    heads: int | None,
    dtype: torch.dtype | None,
    device: Device,
) -> "UMT5EncoderModel":
    """An encoder from a state in transformers' names; about: its config.json."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes: dict[str, Any] = dict(t5_sizes(state.shapes, heads))
    if about.get("feed_forward_proj", "gated-gelu") != "gated-gelu":
        raise BadInput(f"{state.source}: not a UMT5 encoder (feed_forward_proj is not gated-gelu)")
    if type(about.get("relative_attention_max_distance")) is int:
        sizes["relative_attention_max_distance"] = about["relative_attention_max_distance"]
    with torch.device("meta"):
        model: Any = UMT5EncoderModel(UMT5Config(**sizes))
    nn.Module.to(model, dtype or state["shared.weight"].dtype)
    assign(model, state, _TIED, device)
    model.tie_weights()
    found: UMT5EncoderModel = model.eval().requires_grad_(False)
    return found


def _as_state(state: Mapping[str, Tensor], source: str) -> State:
    return state if isinstance(state, State) else State.of(state, source)

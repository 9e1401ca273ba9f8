"""Bundles of all four parts, written to disk.

As diffusers folders in safetensors, or in the released layout.
"""

import inspect
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from lumosx_rt.reference.backbones.config import PATCH, LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints import key_names as keymaps
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import write_atomically
from lumosx_rt.reference.mechanisms.lumosx.layout import ROPE_TABLE
from lumosx_rt.reference.places import move_folder, place_of, try_place

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel


def save_bundle(
    path: str | Path,
    *,
    transformer: LumosX | None = None,
    vae: "AutoencoderKLWan | None" = None,
    text_encoder: "UMT5EncoderModel | None" = None,
    tokenizer: Any = None,
    defaults: dict[str, Any] | None = None,
    half: bool = False,
    released: bool = False,
) -> None:
    """Write a bundle: diffusers-style folders in safetensors, or the released layout
    (docs/spec.md#checkpoints).

    diffusers' own classes open the folders; `transformer/config.json` has two entries more, the
    text length and the MCAM strength. defaults: sizes and sampling for requests that say nothing,
    kept in defaults.json. half: matrices of transformer and VAE are stored in float16 (diffusers
    layout only). The folder appears under its name when it is complete, where a link there leads.
    Raises LumosXError if the path is taken, the disk is too small, or a number too large for half.
    """
    path = place_of(path)
    _check_free(path)
    try_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    models = [cast(Any, model) for model in (transformer, vae, text_encoder) if model is not None]
    needed = sum(t.numel() * t.element_size() for m in models for t in m.state_dict().values())
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise BadInput(f"{path}: needs {needed} bytes, the disk has {free} left")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as made:
        folder = Path(made) / "bundle"
        folder.mkdir()
        if released:
            _write_released(folder, transformer, vae, text_encoder, tokenizer)
        else:
            _write_diffusers(folder, transformer, vae, text_encoder, tokenizer, half)
        if defaults is not None:
            _write_json(folder / "defaults.json", defaults)
        _check_free(path)
        move_folder(folder, path)


def _check_free(path: Path) -> None:
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise BadInput(f"{path}: already exists; give a new name, or remove it")


def _write_diffusers(
    folder: Path,
    transformer: LumosX | None,
    vae: Any,
    text_encoder: Any,
    tokenizer: Any,
    half: bool,
) -> None:
    stored = _halved if half else dict[str, Tensor]
    index: dict[str, Any] = {"_class_name": "WanPipeline"}
    if transformer is not None:
        state = transformer.state_dict().items()
        tensors = {keymaps.transformer_to_diffusers(name): tensor for name, tensor in state}
        part = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        _write_model(part, stored(tensors), _diffusers_config(transformer.config))
        index["transformer"] = ["diffusers", "WanTransformer3DModel"]
    if vae is not None:
        part = folder / "vae" / "diffusion_pytorch_model.safetensors"
        _write_model(part, stored(vae.state_dict()), json.loads(vae.to_json_string()))
        index["vae"] = ["diffusers", "AutoencoderKLWan"]
    if text_encoder is not None:
        kind: dict[str, Any] = {"architectures": ["UMT5EncoderModel"]}
        kind["dtype"] = str(text_encoder.dtype).removeprefix("torch.")
        part = folder / "text_encoder" / "model.safetensors"
        config = text_encoder.config.to_diff_dict() | kind
        _write_model(part, _untied(text_encoder), config)
        index["text_encoder"] = ["transformers", "UMT5EncoderModel"]
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
        index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    _write_json(folder / "model_index.json", index)


def _write_model(weights: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    weights.parent.mkdir()
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(plain, weights, metadata={"format": "pt"})
    _write_json(weights.parent / "config.json", config)


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in float16, the rest as it is."""
    found = {
        k: t.half() if t.dim() > 1 and t.is_floating_point() else t for k, t in tensors.items()
    }
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise BadInput(f"{name} holds numbers too large for half precision; store it whole")
    return found


def _untied(text_encoder: Any) -> dict[str, Tensor]:
    """Return its tensors without the second name of the embeddings."""
    state = text_encoder.state_dict().items()
    return {name: tensor for name, tensor in state if name != "encoder.embed_tokens.weight"}


def _write_released(
    folder: Path, transformer: LumosX | None, vae: Any, text_encoder: Any, tokenizer: Any
) -> None:
    if transformer is not None:
        from torch.distributed.checkpoint.state_dict_saver import save

        with warnings.catch_warnings():  # that there is no process group is meant
            warnings.simplefilter("ignore")
            save(
                {"ema": transformer.state_dict()},
                checkpoint_id=folder / "LumosX_models" / "all",
                no_dist=True,
            )
        _write_json(folder / "LumosX_models" / "config.json", _diffusers_config(transformer.config))
    if vae is not None:
        default = inspect.signature(type(vae).__init__).parameters
        for name in ("latents_mean", "latents_std"):
            if list(vae.config[name]) != list(default[name].default):
                raise BadInput(
                    f"{folder}: the released layout has no place for this VAE's own {name}; "
                    "write diffusers folders (released=False)"
                )
        blocks = vae.config.num_res_blocks
        tensors = {keymaps.vae_to_wan(k, blocks): t for k, t in vae.state_dict().items()}
        torch.save({"model_state": tensors}, folder / "vae.pth")
    if text_encoder is not None:
        tensors = {keymaps.t5_to_wan(k): tensor for k, tensor in _untied(text_encoder).items()}
        torch.save(tensors, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "umt5-xxl")


def _diffusers_config(config: LumosXConfig) -> dict[str, Any]:
    """Return the arguments of diffusers' WanTransformer3DModel, and what LumosX needs beyond
    them."""
    import diffusers

    return {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": diffusers.__version__,
        "added_kv_proj_dim": None,
        "attention_head_dim": config.head_dim,
        "cross_attn_norm": config.cross_attn_norm,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "image_dim": None,
        "in_channels": config.in_dim,
        "mcam_ratio": config.mcam_ratio,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_channels": config.out_dim,
        "patch_size": list(PATCH),
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads" if config.qk_norm else None,
        "rope_max_seq_len": ROPE_TABLE,
        "text_dim": config.text_dim,
        "text_len": config.text_len,
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2) + "\n")

"""Parameter names by rule, against the recorded tables and the other projects' own models."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from lumosx_rt.reference.checkpoints import key_names as keymaps

AutoencoderKLWan: Any = diffusers.AutoencoderKLWan
WanTransformer3DModel: Any = diffusers.WanTransformer3DModel
GOLDEN = Path(os.environ.get("LUMOSX_GOLDEN_DIR", Path(__file__).parents[2] / "golden"))


def vae_from_wan(key: str) -> str:
    return keymaps.vae_from_wan(key, num_res_blocks=2)


def vae_to_wan(key: str) -> str:
    return keymaps.vae_to_wan(key, num_res_blocks=2)


@pytest.mark.parametrize(
    ("table", "there", "back"),
    [
        (
            "keymap_table.json",
            keymaps.transformer_to_diffusers,
            keymaps.transformer_from_diffusers,
        ),
        ("t5_keymap.json", keymaps.t5_from_wan, keymaps.t5_to_wan),
        ("vae_keymap.json", vae_from_wan, vae_to_wan),
    ],
)
def test_recorded_tables(
    table: str, there: Callable[[str], str], back: Callable[[str], str]
) -> None:
    pairs = json.loads((GOLDEN / table).read_text())
    assert len(pairs) >= 12
    assert [there(wan) for wan, _ in pairs] == [other for _, other in pairs]
    assert [back(other) for _, other in pairs] == [wan for wan, _ in pairs]


def released_transformer_keys(layers: int) -> set[str]:
    """Every released key, written out from docs/spec.md#key-names."""
    linears = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0"]
    linears += ["time_embedding.2", "time_projection.1", "head.head"]
    keys = {"head.modulation"}
    for i in range(layers):
        keys.add(f"blocks.{i}.modulation")
        linears += [f"blocks.{i}.norm3", f"blocks.{i}.ffn.0", f"blocks.{i}.ffn.2"]
        for attention in (f"blocks.{i}.self_attn", f"blocks.{i}.cross_attn"):
            linears += [f"{attention}.{name}" for name in "qkvo"]
            keys |= {f"{attention}.norm_q.weight", f"{attention}.norm_k.weight"}
    return keys | {f"{name}.{leaf}" for name in linears for leaf in ("weight", "bias")}


@pytest.mark.parametrize("layers", [1, 12])
def test_transformer_names_at_any_depth(layers: int) -> None:
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, num_layers=layers, ffn_dim=32
        )
    theirs, ours = set(model.state_dict()), released_transformer_keys(layers)
    assert {keymaps.transformer_to_diffusers(key) for key in ours} == theirs
    assert {keymaps.transformer_from_diffusers(key) for key in theirs} == ours


def test_t5_names_at_any_depth() -> None:
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(d_model=8, d_kv=4, d_ff=8, num_layers=11, num_heads=2))
    names = set(model.state_dict()) - {"encoder.embed_tokens.weight"}
    wan = {keymaps.t5_to_wan(name) for name in names}
    assert {name for name in wan if "encoder" in name or "layer." in name} == set()
    assert {"blocks.10.ffn.gate.0.weight", "blocks.10.pos_embedding.embedding.weight"} <= wan
    assert {keymaps.t5_from_wan(name) for name in wan} == names


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize(
    ("dim_mult", "temporal"), [([1, 2, 4, 4], [False, True, True]), ([1, 2], [True]), ([1], [])]
)
def test_vae_names_at_any_shape(blocks: int, dim_mult: list[int], temporal: list[bool]) -> None:
    with torch.device("meta"):
        model = AutoencoderKLWan(
            base_dim=4, dim_mult=dim_mult, num_res_blocks=blocks, temperal_downsample=temporal
        )
    names = set(model.state_dict())
    wan = {keymaps.vae_to_wan(name, blocks) for name in names}
    assert {keymaps.vae_from_wan(name, blocks) for name in wan} == names
    assert len(wan) == len(names)
    # Wan counts decoder blocks and resamplers in one row without gaps
    places = {int(name.split(".")[2]) for name in wan if name.startswith("decoder.upsamples.")}
    assert places == set(range(len(dim_mult) * (blocks + 2) - 1))


@pytest.mark.parametrize(
    "key", ["blocks.0.extra.weight", "img_emb.proj.0.weight", "blocks.x.modulation", "freqs", ""]
)
def test_unknown_names_come_back_unchanged(key: str) -> None:
    assert keymaps.transformer_to_diffusers(key) == key
    assert keymaps.transformer_from_diffusers(key) == key
    assert vae_from_wan(key) == key
    assert vae_to_wan(key) == key

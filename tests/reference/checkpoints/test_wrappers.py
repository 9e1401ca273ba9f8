"""Names are found in whatever wraps them, for all parts and in all layouts, or what they have in
common is told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints import key_names as keymaps
from lumosx_rt.reference.checkpoints.bundle import Component
from lumosx_rt.reference.checkpoints.state import State
from lumosx_rt.reference.checkpoints.wrappers import NAMINGS, in_common, unwrapped
from lumosx_rt.reference.encoders.random import random_components
from lumosx_rt.reference.encoders.weights import load_autoencoder, load_t5
from lumosx_rt.reference.errors import LumosXError

CONFIG = LumosXConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, text_dim=16, text_len=16)


def names_of(part: str) -> list[list[str]]:
    """The names of a part, in the layout of every project."""
    text, _, vae = random_components(0)
    if part == "text encoder":
        ours = list(text.state_dict())
        wan = [keymaps.t5_to_wan(name) for name in ours if name != "encoder.embed_tokens.weight"]
        return [ours, wan]
    if part == "VAE":
        ours = list(vae.state_dict())
        return [ours, [keymaps.vae_to_wan(name, vae.config.num_res_blocks) for name in ours]]
    with torch.device("meta"):
        ours = list(LumosX(CONFIG).state_dict())
    return [ours, [keymaps.transformer_to_diffusers(name) for name in ours]]


NAMES = {part: names_of(part) for part in NAMINGS}


def before(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def inside(word: str, at: int = 2, where: str = "") -> Callable[[str], str]:
    """Put a segment after the first `at` of a name, where it has so many and begins so."""

    def wrap(name: str) -> str:
        parts = name.split(".")
        deep = len(parts) > at and name.startswith(where)
        return ".".join([*parts[:at], word, *parts[at:]]) if deep else name

    return wrap


def everywhere(word: str) -> Callable[[str], str]:
    return lambda name: f"{word}." + name.replace(".", f".{word}.")


PREFIXES = [
    "_orig_mod.", "module.", "model.", "model.diffusion_model.", "transformer.", "generator.",
    "net.", "0.", "module._orig_mod.", "_orig_mod.module.", "base_model.model.",
    "state_dict.model.", "_fsdp_wrapped_module.", "anything-else.x1.", "encoder_.model.0.",
]  # fmt: skip
WRAPS = {prefix: before(prefix) for prefix in PREFIXES} | {
    "every submodule": everywhere("_fsdp_wrapped_module"),
    "blocks compiled": inside("_orig_mod"),
    "one block compiled": inside("_orig_mod", where="blocks.0"),
    "checkpointed": inside("_checkpoint_wrapped_module"),
    "a sequence": inside("0", where="blocks.1"),
    "a layer adapted": inside("base_layer", at=4),
    "both": lambda name: "module." + inside("_checkpoint_wrapped_module.mod")(name),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("part", NAMINGS)
def test_names_are_found_in_any_wrapper(part, wrap):
    for names in NAMES[part]:
        state = State({WRAPS[wrap](name): (1,) for name in names}, torch.zeros, "file")
        assert list(unwrapped(state, part)) == names


@pytest.mark.parametrize("part", NAMINGS)
def test_names_without_a_wrapper_are_left_alone(part):
    for names in NAMES[part]:
        state = State({name: (1,) for name in [*names, "logvar", "x.y.z"]}, torch.zeros, "file")
        assert list(unwrapped(state, part)) == [*names, "logvar", "x.y.z"]


def test_every_part_is_found_in_a_file_of_everything():
    places = {"transformer": "model.diffusion_model.", "text encoder": "text_encoders.umt5xxl."}
    places |= {"VAE": "vae."}
    everything = {
        places[part] + name: (1,) for part, layouts in NAMES.items() for name in layouts[0]
    }
    for part, layouts in NAMES.items():
        assert list(unwrapped(State(everything, torch.zeros, "file"), part)) == layouts[0]


@pytest.mark.parametrize("wrap", ["_orig_mod.", "every submodule", "base_model.model."])
def test_wrapped_weights_of_all_parts_load_as_they_are(tmp_path, wrap):
    text, _, vae = random_components(0)
    with torch.random.fork_rng(devices=[]):
        model: Any = LumosX(CONFIG)

    def saved(name: str, state: dict[str, torch.Tensor]):
        tied = {k: v.clone().contiguous() for k, v in state.items() if "embed_tokens" not in k}
        save_file({WRAPS[wrap](k): v for k, v in tied.items()}, tmp_path / name)
        return Component(tmp_path / name, "safetensors", (tmp_path / name,))

    saved("model.safetensors", model.state_dict())
    torch.save(
        {"state_dict": {WRAPS[wrap](k): v for k, v in model.state_dict().items()}},
        tmp_path / "model.pt",
    )
    for file in ("model.safetensors", "model.pt"):
        found: Any = load_transformer(tmp_path / file, config=CONFIG).state_dict()
        assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())
    found = load_t5(saved("text.safetensors", text.state_dict())).state_dict()
    assert all(torch.equal(found[k], v) for k, v in text.state_dict().items())
    part = saved("vae.safetensors", vae.state_dict())
    loaded: Any = load_autoencoder(part)
    assert torch.equal(loaded.quant_conv.bias, vae.quant_conv.bias)


def refusal(act, *args) -> str:
    with pytest.raises(LumosXError) as refused:
        act(*args)
    text = str(refused.value)
    assert len(text) < 1500 and "\n" not in text, text
    return text


def weights(tmp_path, *wraps: Callable[[str], str]):
    state = {wrap(k): torch.zeros(1) for wrap in wraps for k in NAMES["transformer"][0]}
    save_file(state, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_two_models_in_one_file_are_refused(tmp_path):
    file = weights(tmp_path, before("generator."), before("critic."))
    text = refusal(load_transformer, file)
    assert "'generator' (69)" in text and "'critic' (69)" in text and "alone" in text


@pytest.mark.parametrize("config", [None, CONFIG])
def test_what_foreign_names_have_in_common_is_told(tmp_path, config):
    save_file({f"unet.{i}.weight": torch.zeros(1) for i in range(150)}, tmp_path / "m.safetensors")
    text = refusal(lambda path: load_transformer(path, config=config), tmp_path / "m.safetensors")
    assert "all 150 names begin with 'unet.'" in text and "missing" not in text
    names = [f"blocks.{i}.self_attn.q.lora_{x}.weight" for i in range(30) for x in "AB"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "lora.safetensors")
    assert "LoRA" in refusal(load_transformer, tmp_path / "lora.safetensors")


def test_weights_that_tell_no_sizes_are_not_compared_with_a_default_model(tmp_path):
    save_file({"patch_embedding.bias": torch.zeros(128)}, tmp_path / "m.safetensors")
    text = refusal(load_transformer, tmp_path / "m.safetensors")
    assert "0 blocks" in text and "missing" not in text


def test_what_names_have_in_common():
    assert in_common(["a.b.c", "a.b.d", "a.b.e.f"]) == "all 3 names begin with 'a.b.'"
    assert in_common(["a.x", "b.x", "b.y"]) == "3 names, which begin with 'b' (2), 'a' (1)"
    many = in_common([f"n{i}.x" for i in range(40)])
    assert "40 names" in many and "30 more" in many


def test_weights_under_any_one_name_are_read(tmp_path):
    with torch.random.fork_rng(devices=[]):
        model: Any = LumosX(CONFIG)
    state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    optimizer = {"state": {0: {"step": torch.zeros(1)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"generator": state, "step": 7, "optimizer": optimizer}, tmp_path / "m.pt")
    found = load_transformer(tmp_path / "m.pt", config=CONFIG)
    assert torch.equal(found.head.head.bias, model.head.head.bias)
    torch.save({"generator": state, "critic": state}, tmp_path / "two.pt")
    assert "critic, generator" in refusal(load_transformer, tmp_path / "two.pt")

"""Bundles in every layout, written here in their real formats; and what does not fit."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import UMT5EncoderModel

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.loading import load_state, load_transformer
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints.bundle import find_bundle
from lumosx_rt.reference.encoders import random as tiny
from lumosx_rt.reference.encoders.umt5 import load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import load_vae
from lumosx_rt.reference.errors import LumosXError

GOLDEN = Path(os.environ.get("LUMOSX_GOLDEN_DIR", Path(__file__).parents[2] / "golden"))
T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CONFIG = LumosXConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=32, text_dim=32, text_len=96
)
ABOUT = {"dim": 48, "num_heads": 2, "text_len": 96, "_class_name": "WanModel"}  # as Wan2.1 does
State = dict[str, Tensor]


def recorded(name: str) -> State:
    with np.load(GOLDEN / name) as arrays:
        return {
            k.removeprefix("sd/"): torch.from_numpy(arrays[k]) for k in arrays if k[:3] == "sd/"
        }


def random_model(config: LumosXConfig = CONFIG, seed: int = 0) -> LumosX:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LumosX(config)


def save_distributed(folder: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, checkpoint_id=folder, no_dist=True)


def same(model: torch.nn.Module, expected: State) -> bool:
    found = model.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


@pytest.fixture(scope="module")
def model() -> LumosX:
    return random_model()


@pytest.fixture(scope="module")
def released(model: LumosX, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released layout: a distributed checkpoint, Wan2.1's T5 file, vae.pth, a tokenizer."""
    root = tmp_path_factory.mktemp("released")
    other = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    ema = dict(model.state_dict()) | {"freqs": torch.ones(4)}
    state = {"ema": ema, "model": other, "optimizer": {"step": 7, "lr": [0.1]}}
    save_distributed(root / "LumosX_models" / "all", state)
    (root / "LumosX_models" / "config.json").write_text(json.dumps(ABOUT))
    torch.save(recorded("t5_tiny.npz"), root / T5_FILE)
    torch.save({"model_state": recorded("vae_tiny.npz"), "step": 3}, root / "vae.pth")
    tiny.byte_tokenizer().save_pretrained(root / "umt5-xxl")
    return root


# -- layouts ---------------------------------------------------------------------------------------


def test_released_layout(released: Path, model: LumosX) -> None:
    bundle = find_bundle(released)
    assert bundle.kind == "released"
    loaded = load_transformer(bundle)
    assert loaded.config == CONFIG and same(loaded, model.state_dict())
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    vae = load_vae(bundle)
    with np.load(GOLDEN / "vae_tiny.npz") as case:
        found = vae.encode(torch.from_numpy(case["video"]))
        assert np.abs(found.numpy() - case["video_latent"]).max() < 2e-5
    # 259 ids of the tokenizer do not fit the 60 embeddings of the recorded encoder
    with pytest.raises(LumosXError, match="not of one model"):
        load_text_encoder(bundle)


def test_released_text_encoder(released: Path, tmp_path: Path) -> None:
    state = recorded("t5_tiny.npz")
    state["token_embedding.weight"] = torch.randn(259, 32)
    torch.save({k: v.bfloat16() for k, v in state.items()}, tmp_path / T5_FILE)
    shutil.copytree(released / "umt5-xxl", tmp_path / "umt5-xxl")
    encoder = load_text_encoder(tmp_path, text_len=40)
    assert encoder.model.dtype == torch.bfloat16 and encoder.text_dim == 32
    assert encoder.encode("a man").shape == (40, 32)
    full = load_text_encoder(tmp_path, text_len=40, dtype=torch.float32)
    assert torch.equal(full.model.shared.weight, state["token_embedding.weight"].bfloat16().float())


def dcp(state: State, entry: str, *folders: str) -> Callable[[Path], None]:
    return lambda root: save_distributed(
        root.joinpath("LumosX_models", *folders), {entry: state} if entry else dict(state)
    )


def torch_file(state: Any, name: str) -> Callable[[Path], None]:
    return lambda root: torch.save(state, root / "LumosX_models" / name)


MODEL = random_model().state_dict()
WITH_FREQS = dict(MODEL) | {"freqs": torch.ones(3)}
WAYS: dict[str, Callable[[Path], None]] = {
    "dcp-model-entry": dcp(MODEL, "model", "all"),
    "dcp-in-ema-folder": dcp(MODEL, "", "ema"),
    "dcp-in-model-folder": dcp(WITH_FREQS, "ema", "model"),
    "dcp-at-the-top": dcp(MODEL, "ema"),
    "pt": torch_file(WITH_FREQS, "lumosx.pt"),
    "pth-parameters": torch_file({k: torch.nn.Parameter(v) for k, v in MODEL.items()}, "x.pth"),
    "pt-ema": torch_file({"model": {}, "ema": MODEL, "step": 3}, "lumosx.pt"),
    "pt-nested": torch_file({"state_dict": {"module": MODEL}}, "lumosx.pt"),
    "safetensors": lambda root: save_file(WITH_FREQS, root / "LumosX_models" / "m.safetensors"),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_store_the_released_transformer(way: str, tmp_path: Path) -> None:
    (tmp_path / "LumosX_models").mkdir()
    WAYS[way](tmp_path)
    (tmp_path / "LumosX_models" / "config.json").write_text(json.dumps(ABOUT))
    loaded = load_transformer(tmp_path)
    assert same(loaded, dict(MODEL)) and loaded.config == CONFIG
    state = load_state(tmp_path)
    assert state.keys() == MODEL.keys()
    assert all(torch.equal(state[key], MODEL[key]) for key in MODEL)
    # the folder of the model, and the file in it, are enough
    assert same(load_transformer(tmp_path / "LumosX_models"), dict(MODEL))
    files = [f for f in (tmp_path / "LumosX_models").iterdir() if f.suffix != ".json"]
    if files[0].is_file() and files[0].suffix != ".distcp" and files[0].name != ".metadata":
        bare = find_bundle(files[0])
        assert bare.kind == "transformer" and same(load_transformer(bare), dict(MODEL))


@pytest.mark.parametrize("sharded", [False, True])
def test_wan_layout(sharded: bool, tmp_path: Path, model: LumosX) -> None:
    state = dict(model.state_dict())
    name = "diffusion_pytorch_model"
    if sharded:
        parts = [dict(list(state.items())[i::3]) for i in range(3)]
        names = [f"{name}-0000{i + 1}-of-00003.safetensors" for i in range(3)]
        for part, file in zip(parts, names, strict=True):
            save_file(part, tmp_path / file)
        index = {key: file for part, file in zip(parts, names, strict=True) for key in part}
        text = json.dumps({"metadata": {}, "weight_map": index})
        (tmp_path / f"{name}.safetensors.index.json").write_text(text)
    else:
        save_file(state, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(ABOUT))
    torch.save(recorded("t5_tiny.npz"), tmp_path / T5_FILE)
    torch.save(recorded("vae_tiny.npz"), tmp_path / "Wan2.1_VAE.pth")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "google" / "umt5-xxl")
    bundle = find_bundle(tmp_path)
    assert bundle.kind == "wan" and load_transformer(bundle).config == CONFIG
    assert same(load_transformer(bundle), state)
    assert bundle.tokenizer is not None and bundle.text_encoder is not None
    ours = load_vae(bundle).model.state_dict()
    assert torch.equal(ours["quant_conv.weight"], recorded("vae_tiny.npz")["conv1.weight"])
    assert bundle.require("vae").config is None  # the config.json there is the transformer's


def test_diffusers_layout(tmp_path: Path) -> None:
    build: Any = diffusers.WanTransformer3DModel
    theirs = build(
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=2,
        ffn_dim=64,
        freq_dim=32,
        text_dim=64,
    )
    encoder, tokenizer, vae = tiny.random_components(seed=0)
    theirs.save_pretrained(tmp_path / "transformer", max_shard_size="60KB")
    models: tuple[Any, Any] = (encoder, vae)
    models[0].save_pretrained(tmp_path / "text_encoder")
    models[1].save_pretrained(tmp_path / "vae")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    bundle = find_bundle(tmp_path)
    assert bundle.kind == "diffusers" and bundle.require("transformer").format == "sharded"
    loaded = load_transformer(bundle)
    assert loaded.config.num_heads == 2 and loaded.config.num_layers == 2
    pairs = json.loads((GOLDEN / "keymap_table.json").read_text())
    ours, state = loaded.state_dict(), theirs.state_dict()
    assert len(ours) == len(state)
    for wan, other in pairs:  # written for the first block
        assert torch.equal(ours[wan], state[other]), wan
        second = wan.replace("blocks.0", "blocks.1"), other.replace("blocks.0", "blocks.1")
        assert torch.equal(ours[second[0]], state[second[1]])
    assert same(load_vae(bundle).model, models[1].state_dict())
    assert same(load_text_encoder(bundle, 96).model, models[0].state_dict())


def test_a_transformer_alone_says_what_is_not_there(tmp_path: Path, model: LumosX) -> None:
    save_file(dict(model.state_dict()), tmp_path / "some.safetensors")
    bundle = find_bundle(tmp_path)
    assert bundle.kind == "transformer" and set(bundle.sha256) == {"transformer"}
    with pytest.raises(LumosXError, match=r"no vae here, only transformer; accepted are vae/"):
        load_vae(bundle)
    save_file(dict(model.state_dict()), tmp_path / "other.safetensors")
    with pytest.raises(LumosXError, match="which of other.safetensors, some.safetensors"):
        find_bundle(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LumosXError, match="no checkpoint here"):
        find_bundle(tmp_path / "empty")
    with pytest.raises(LumosXError, match="no such file"):
        find_bundle(tmp_path / "nowhere")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(LumosXError, match="not a checkpoint"):
        find_bundle(tmp_path / "x.txt")


def test_hashes_tell_content_not_place(released: Path, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "copy")
    first, second = find_bundle(released).sha256, find_bundle(tmp_path / "copy").sha256
    assert first == second and len(set(first.values())) == 4
    file = tmp_path / "copy" / "LumosX_models" / "all" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    third = find_bundle(tmp_path / "copy").sha256
    assert third["transformer"] != first["transformer"] and third["vae"] == first["vae"]


# -- what fits, and what does not ------------------------------------------------------------------


def test_every_key_that_does_not_fit_is_named(tmp_path: Path, model: LumosX) -> None:
    state = dict(model.state_dict())
    del state["blocks.1.self_attn.q.weight"], state["time_embedding.0.bias"]
    state |= {"blocks.0.img.weight": torch.ones(1), "lora.down": torch.ones(1)}
    state["patch_embedding.weight"] = torch.zeros(47, 16, 1, 2, 2)
    state["head.head.bias"] = torch.zeros(65)
    save_file(state, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(ABOUT))
    with pytest.raises(LumosXError) as refused:
        load_transformer(tmp_path)
    message = str(refused.value)
    assert "6 problems" in message
    for part in (
        "blocks.1.self_attn.q.weight is missing",
        "time_embedding.0.bias is missing",
        "blocks.0.img.weight is unexpected",
        "lora.down is unexpected",
        "patch_embedding.weight has shape [47, 16, 1, 2, 2], not [48, 16, 1, 2, 2]",
        "head.head.bias has shape [65], not [64]",
    ):
        assert part in message


def test_a_missing_block_and_a_stray_number_are_named(tmp_path: Path) -> None:
    config = LumosXConfig(**{**CONFIG.__dict__, "num_layers": 3})
    state = dict(random_model(config).state_dict())
    state = {k: v for k, v in state.items() if not k.startswith("blocks.1.")}
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(LumosXError) as refused:
        load_transformer(tmp_path / "m.safetensors", config=config)
    assert str(refused.value).count("blocks.1.") == 10  # and how many more
    assert "27 of 96 keys are missing" in str(refused.value) and "17 more" in str(refused.value)
    stray = dict(MODEL) | {"blocks.99999.modulation": torch.ones(1, 6, 48)}
    save_file(stray, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(ABOUT))
    with pytest.raises(LumosXError, match="blocks.99999.modulation is unexpected"):
        load_transformer(tmp_path / "m.safetensors")


def test_heads_come_from_a_config_or_are_128_wide(tmp_path: Path, model: LumosX) -> None:
    file = tmp_path / "m.safetensors"
    save_file(dict(model.state_dict()), file)
    with pytest.raises(LumosXError, match="width 48 is not a multiple of 128"):
        load_transformer(file)
    assert load_transformer(file, config=CONFIG).config is CONFIG
    (tmp_path / "config.json").write_text(json.dumps({**ABOUT, "ffn_dim": 65, "text_len": "x"}))
    with pytest.raises(LumosXError) as refused:
        load_transformer(file)
    assert "ffn_dim is 65, the weights have 64" in str(refused.value)
    assert "text_len must be a number, got 'x'" in str(refused.value)
    wide = LumosXConfig(dim=256, num_heads=2, num_layers=1, ffn_dim=8, freq_dim=8, text_dim=8)
    (tmp_path / "wide").mkdir()
    save_file(dict(random_model(wide).state_dict()), tmp_path / "wide" / "m.safetensors")
    assert load_transformer(tmp_path / "wide").config == wide


@pytest.mark.parametrize("switches", [{"qk_norm": False}, {"cross_attn_norm": False}])
def test_switched_off_norms_are_seen(switches: dict[str, bool], tmp_path: Path) -> None:
    config = LumosXConfig(**{**CONFIG.__dict__, **switches, "mcam_ratio": 0.25})
    save_bundle(tmp_path / "b", transformer=random_model(config))
    assert load_transformer(tmp_path / "b").config == config


def test_mixed_precision_is_the_released_one(released: Path, model: LumosX) -> None:
    loaded = load_transformer(released, dtype=torch.bfloat16)
    expected = LumosX(CONFIG, torch.bfloat16).state_dict()
    kinds = {key: tensor.dtype for key, tensor in loaded.state_dict().items()}
    assert kinds == {key: tensor.dtype for key, tensor in expected.items()}
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor.to(kinds[key]))


def test_released_vae_precision(released: Path) -> None:
    exact, rounded = load_vae(released).model, load_vae(released, released_precision=True).model
    for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert b.dtype == torch.float32 and torch.equal(b, a.bfloat16().float())


def test_a_truncated_checkpoint_is_refused(released: Path, tmp_path: Path) -> None:
    for part in ("LumosX_models/all/__0_0.distcp", "vae.pth", T5_FILE):
        root = tmp_path / Path(part).name
        shutil.copytree(released, root)
        data = (root / part).read_bytes()
        (root / part).write_bytes(data[: len(data) // 2])
        readers: dict[str, Callable[[Path], Any]]
        readers = {"vae.pth": load_vae, T5_FILE: load_text_encoder}
        with pytest.raises(LumosXError):
            readers.get(part, load_state)(root)


# -- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_released", [False, True])
def test_a_bundle_comes_back_identical(as_released: bool, tmp_path: Path, model: LumosX) -> None:
    encoder, tokenizer, vae = tiny.random_components(seed=0)
    path = tmp_path / "deep" / "bundle"
    save_bundle(
        path,
        transformer=model,
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        released=as_released,
    )
    bundle = find_bundle(path)
    assert bundle.kind == ("released" if as_released else "diffusers")
    models: tuple[Any, Any] = (encoder, vae)
    loaded = load_transformer(bundle)
    assert loaded.config == CONFIG and same(loaded, dict(model.state_dict()))
    text = load_text_encoder(bundle, 96)
    assert same(text.model, models[0].state_dict())
    assert same(load_vae(bundle).model, models[1].state_dict())
    assert text.tokenizer("a man").input_ids == tokenizer("a man").input_ids
    assert [f.name for f in path.parent.iterdir()] == ["bundle"]


def test_other_libraries_open_a_bundle(tmp_path: Path, model: LumosX) -> None:
    encoder, _, vae = tiny.random_components(seed=0)
    save_bundle(tmp_path / "b", transformer=model, vae=vae, text_encoder=encoder)
    wan: Any = diffusers.WanTransformer3DModel
    theirs, info = wan.from_pretrained(tmp_path / "b" / "transformer", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state, ours = theirs.state_dict(), model.state_dict()
    for name, other in json.loads((GOLDEN / "keymap_table.json").read_text()):
        assert torch.equal(state[other], ours[name])
    assert theirs.config.num_attention_heads == 2 and theirs.config.mcam_ratio == 0.5
    kl: Any = diffusers.AutoencoderKLWan
    models: tuple[Any, Any] = (vae, encoder)
    assert same(kl.from_pretrained(tmp_path / "b" / "vae"), models[0].state_dict())
    t5: Any = UMT5EncoderModel
    assert same(t5.from_pretrained(tmp_path / "b" / "text_encoder"), models[1].state_dict())


def test_a_failed_write_leaves_nothing(tmp_path: Path, model: LumosX) -> None:
    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        save_bundle(tmp_path / "b", transformer=model, tokenizer=Broken())
    assert not list(tmp_path.iterdir())
    save_bundle(tmp_path / "b", transformer=model)
    with pytest.raises(LumosXError, match="already exists"):
        save_bundle(tmp_path / "b", transformer=model)


def test_the_released_layout_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    build: Any = diffusers.AutoencoderKLWan
    vae = build(base_dim=2, num_res_blocks=1, latents_mean=[0.0] * 16)
    with pytest.raises(LumosXError, match="latents_mean"):
        save_bundle(tmp_path / "b", vae=vae, released=True)
    assert not list(tmp_path.iterdir())
    save_bundle(tmp_path / "b", vae=vae)
    assert load_vae(tmp_path / "b").model.config.latents_mean == [0.0] * 16


MEASURE = """
import ctypes, gc, sys, torch
from lumosx_rt.reference.backbones.loading import load_transformer
def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if field in line).split()[1])
for i in range(1, len(sys.argv), 2):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what the last model left
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak
    before = status("VmRSS")
    model = load_transformer(sys.argv[i], dtype=getattr(torch, sys.argv[i + 1]))
    total = sum(float(p.sum()) for p in model.parameters())
    print(status("VmHWM") - before, total)
    del model
"""


@pytest.mark.slow  # reads /proc, so on Linux
def test_a_model_is_never_in_memory_twice(tmp_path: Path) -> None:
    config = LumosXConfig(dim=768, num_heads=6, ffn_dim=3072, num_layers=4, text_dim=64)
    big = random_model(config)
    size = sum(p.numel() * 4 for p in big.parameters())
    total = sum(float(p.detach().sum()) for p in big.parameters())
    assert size > 160e6
    save_bundle(tmp_path / "small", transformer=random_model())
    save_bundle(tmp_path / "safetensors", transformer=big)
    save_bundle(tmp_path / "distributed", transformer=big, released=True)
    torch.save({"ema": big.state_dict()}, tmp_path / "m.pt")
    ways = [("small", "float32", 99.0)]  # first, so that what torch imports is not counted
    ways += [("safetensors", "float32", 1.2), ("m.pt", "float32", 1.2)]
    ways += [("distributed", "bfloat16", 0.9), ("distributed", "float32", 1.3)]
    arguments = [word for name, dtype, _ in ways for word in (str(tmp_path / name), dtype)]
    command = [sys.executable, "-c", MEASURE, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    for line, (name, dtype, bound) in zip(ran.stdout.splitlines(), ways, strict=True):
        grown, found = map(float, line.split())
        assert grown < bound * size
        if name != "small" and dtype == "float32":
            assert found == pytest.approx(total, rel=1e-5) and grown > 0.9 * size

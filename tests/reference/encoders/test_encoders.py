"""Text encoder, tokenizer and VAE: recorded numbers, the libraries' own models, slow versions."""

import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.checkpoints import key_names as keymaps
from lumosx_rt.reference.encoders import random as tiny
from lumosx_rt.reference.encoders import tiled_decode as decode
from lumosx_rt.reference.encoders.umt5 import TextEncoder, load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder, load_vae
from lumosx_rt.reference.encoders.weights import load_tokenizer, t5_from_wan, vae_from_wan
from lumosx_rt.reference.errors import LumosXError
from tests.helpers.budget import assert_within_budget

GOLDEN = Path(os.environ.get("LUMOSX_GOLDEN_DIR", Path(__file__).parents[2] / "golden"))
TOLERANCE = json.loads((GOLDEN / "index.json").read_text())["suggested_tolerance"]
AutoencoderKLWan: Any = diffusers.AutoencoderKLWan


class Recorded(dict[str, Tensor]):
    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / name) as arrays:
            kept = {k: v for k, v in arrays.items() if v.dtype.kind != "U"}
        super().__init__({k: torch.from_numpy(v) for k, v in kept.items()})
        self.state = {k.removeprefix("sd/"): v for k, v in self.items() if k.startswith("sd/")}


@pytest.fixture(scope="module")
def recorded_vae() -> tuple[Recorded, VideoAutoencoder]:
    case = Recorded("vae_tiny.npz")
    mean, std = case["latents_mean"].tolist(), case["latents_std"].tolist()
    return case, VideoAutoencoder(vae_from_wan(case.state, mean, std))


@pytest.fixture(scope="module")
def components() -> tuple[Any, Any, Any]:
    return tiny.random_components(seed=0)


@pytest.fixture(scope="module")
def text_encoder(components: tuple[Any, Any, Any]) -> TextEncoder:
    return TextEncoder(components[0], components[1], text_len=96)


def small_vae(levels: int = 2, blocks: int = 1, base: int = 6, seed: int = 0) -> Any:
    """A random VAE in float64 whose decoder only adds, so that no influence cancels."""
    torch.manual_seed(seed)
    temporal = [False, *[True] * (levels - 2)] if levels > 2 else [True] * (levels - 1)
    model = AutoencoderKLWan(
        base_dim=base,
        dim_mult=[1, 2, 4, 4][:levels],
        num_res_blocks=blocks,
        temperal_downsample=temporal,
    )
    for module in model.decoder.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() >= 4:
            weight.data = weight.data.abs()
    return torch.nn.Module.to(model.eval().requires_grad_(False), torch.float64)


# -- text encoder ----------------------------------------------------------------------------------


def test_t5_reproduces_recorded_outputs() -> None:
    case = Recorded("t5_tiny.npz")
    model: Any = t5_from_wan(case.state)
    hidden = model(input_ids=case["ids"], attention_mask=case["mask"]).last_hidden_state
    for row in range(len(hidden)):
        expected = case[f"out{row}_valid"]
        assert (hidden[row, : len(expected)] - expected).abs().max() <= TOLERANCE["t5_max_abs"]


def test_t5_with_a_position_table_shared_by_all_layers() -> None:
    case = Recorded("t5_tiny.npz")
    table = "pos_embedding.embedding.weight"
    own = dict(case.state) | {f"blocks.1.{table}": case.state[f"blocks.0.{table}"]}
    shared = {k: v for k, v in own.items() if not k.endswith(table)}
    shared[table] = own[f"blocks.0.{table}"]
    a: Any = t5_from_wan(own)
    b: Any = t5_from_wan(shared)
    inputs = {"input_ids": case["ids"], "attention_mask": case["mask"]}
    assert torch.equal(a(**inputs).last_hidden_state, b(**inputs).last_hidden_state)


def test_t5_of_other_sizes_equals_transformers_own() -> None:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=50, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=3, dropout_rate=0.0
    )
    model: Any = UMT5EncoderModel(config)
    model.eval()
    state = {
        keymaps.t5_to_wan(name): tensor
        for name, tensor in model.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }
    ids = torch.randint(2, 50, (2, 33))
    ours: Any = t5_from_wan(state)
    with torch.no_grad():
        assert torch.equal(ours(ids).last_hidden_state, model(ids).last_hidden_state)
    assert ours.shared.weight is ours.encoder.embed_tokens.weight


def test_t5_names_every_key_that_does_not_fit() -> None:
    state = dict(Recorded("t5_tiny.npz").state)
    del state["blocks.1.attn.q.weight"]
    state["blocks.0.extra"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(31)
    with pytest.raises(LumosXError) as refused:
        t5_from_wan(state)
    message = str(refused.value)
    assert "encoder.block.1.layer.0.SelfAttention.q.weight is missing" in message
    assert "extra is unexpected" in message
    assert "encoder.final_layer_norm.weight has shape [31], not [32]" in message
    with pytest.raises(LumosXError, match="not the weights of a UMT5 encoder"):
        t5_from_wan({"a": torch.zeros(1)})


def test_ids_are_bytes_between_a_space_and_the_end(text_encoder: TextEncoder) -> None:
    alphabet = text_encoder.tokenizer.convert_ids_to_tokens
    ids, mask = text_encoder.tokenize("  A café,\n two  &amp;amp; 人 ")
    expected = " A café, two & 人".encode()
    assert ids.dtype == np.int64 and mask.dtype == np.bool_ and ids.shape == mask.shape == (96,)
    assert mask.sum() == len(expected) + 1
    assert ids[len(expected)] == 1 and not ids[len(expected) + 1 :].any()
    assert text_encoder.tokenizer.decode(ids[: len(expected)]).encode() == expected
    assert alphabet([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]


def test_truncation_keeps_the_end_token(text_encoder: TextEncoder) -> None:
    ids, mask = text_encoder.tokenize("x" * 500)
    assert mask.all() and ids[-1] == 1 and (ids[1:-1] == ids[1]).all()


def test_embeddings_equal_a_run_without_padding(text_encoder: TextEncoder) -> None:
    text = "A young woman and a man wear hats"
    ids, mask = text_encoder.tokenize(text)
    real = torch.from_numpy(ids[mask])[None]
    with torch.no_grad():
        expected, exact = (
            model(input_ids=real).last_hidden_state[0]
            for model in (text_encoder.model, deepcopy(text_encoder.model).double())
        )
    found = text_encoder.encode(text)
    assert found.shape == (96, 64) and found.dtype == torch.float32
    assert_within_budget("embeddings", found[: len(expected)], expected, exact)
    assert not found[len(expected) :].any() and expected.std() > 0.1


def test_word_masks_by_place_in_the_text(text_encoder: TextEncoder) -> None:
    text = "man and young woman, a man's red hat; the man"
    spaced = f" {text}"
    prompt, _ = text_encoder.tokenize(text)
    for word in ("man", "young woman", "red hat", "the man", "absent", "Man", ""):
        expected = np.zeros(96, np.bool_)
        start = spaced.find(f" {word}") if word else -1
        while start >= 0:
            expected[start : start + len(word) + 1] = True
            start = spaced.find(f" {word}", start + 1)
        assert (text_encoder.word_mask(prompt, word) == expected).all(), word
    assert text_encoder.word_mask(prompt, "man").sum() == 3 * 4  # not inside "woman"


def test_a_tokenizer_survives_saving(components: tuple[Any, Any, Any], tmp_path: Path) -> None:
    components[1].save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in ("", "A man, two hats", "人 \x00 é", "a </s> b<pad>"):
        assert again(text).input_ids == components[1](text).input_ids
    assert again.pad_token_id == 0 and again.eos_token_id == 1 and len(again) == 259


def test_foreign_tokenizers_are_refused(components: tuple[Any, Any, Any], tmp_path: Path) -> None:
    from tokenizers import processors

    model, tokenizer = components[0], tiny.byte_tokenizer()
    tokenizer.add_tokens(["<more>"])
    with pytest.raises(LumosXError, match="260 ids"):
        TextEncoder(model, tokenizer)
    endless = tiny.byte_tokenizer()
    endless.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(LumosXError, match="an empty text gives"):
        TextEncoder(model, endless)
    with pytest.raises(LumosXError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(LumosXError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)


# -- VAE -------------------------------------------------------------------------------------------


def test_vae_reproduces_recorded_latents_and_pixels(
    recorded_vae: tuple[Recorded, VideoAutoencoder],
) -> None:
    case, vae = recorded_vae
    tolerance = TOLERANCE["vae_max_abs"]
    images = vae.encode_images(case["image"][:, :, 0])
    assert (images - case["image_latent"]).abs().max() <= tolerance
    assert (vae.encode(case["video"]) - case["video_latent"]).abs().max() <= tolerance
    assert (vae.decode(case["video_latent"]) - case["decoded"]).abs().max() <= tolerance
    chunks = list(vae.decode_chunks(case["video_latent"], tile=(1, 2)))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert (torch.cat(chunks, 2) - case["decoded"]).abs().max() <= tolerance


def test_vae_names_every_key_that_does_not_fit() -> None:
    state = dict(Recorded("vae_tiny.npz").state)
    del state["decoder.upsamples.4.residual.2.weight"]
    state["encoder.extra"] = torch.zeros(1)
    state["conv2.bias"] = torch.zeros(3)
    with pytest.raises(LumosXError) as refused:
        vae_from_wan(state)
    message = str(refused.value)
    assert "decoder.up_blocks.1.resnets.0.conv1.weight is missing" in message
    assert "encoder.extra is unexpected" in message
    assert "post_quant_conv.bias has shape [3], not [16]" in message
    with pytest.raises(LumosXError, match="not the weights of a Wan2.1 VAE"):
        vae_from_wan({"a": torch.zeros(1)})


@pytest.mark.parametrize(
    ("dim_mult", "temporal", "blocks", "decoder_base"),
    [([1, 2, 4, 4], [True, False, True], 1, None), ([1, 3], [True], 3, 4), ([2], [], 2, None)],
)
def test_vae_sizes_are_read_from_shapes(
    dim_mult: list[int], temporal: list[bool], blocks: int, decoder_base: int | None
) -> None:
    with torch.random.fork_rng():
        model = AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=decoder_base,
            dim_mult=dim_mult,
            num_res_blocks=blocks,
            temperal_downsample=temporal,
        )
    state = {keymaps.vae_to_wan(k, blocks): v for k, v in model.state_dict().items()}
    again: Any = vae_from_wan(state)
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert again.config.temperal_downsample == temporal and again.config.dim_mult == dim_mult


@pytest.mark.parametrize(("levels", "blocks"), [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (4, 2)])
def test_halo_is_how_far_a_pixel_looks(levels: int, blocks: int) -> None:
    """The farthest latent cell with a gradient, from the first and the last pixel of a cell."""
    decoder = small_vae(levels, blocks, base=2).decoder
    reach, cells = decode.halo(decoder), 2 * decode.halo(decoder) + 5
    middle, cell = cells // 2, decode.scale(decoder)[1]
    for pixel, side in ((middle * cell, -1), ((middle + 1) * cell - 1, 1)):
        width = decoder.up_blocks[0].resnets[0].conv1.in_channels
        x = torch.rand(1, width, 1, 3, cells, dtype=torch.float64, requires_grad=True)
        y = x
        for block in decoder.up_blocks:
            y = block(y)
        y = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(y)))
        (gradient,) = torch.autograd.grad(y[..., pixel].sum(), x)
        seen = gradient.abs().sum((0, 1, 2, 3)).nonzero().flatten() - middle
        assert (seen * side).max().item() == reach


def test_tiles_and_chunks_equal_the_whole_and_a_smaller_halo_does_not() -> None:
    model = small_vae()
    latents = torch.randn(2, 16, 3, 17, 23, dtype=torch.float64)
    with torch.no_grad():  # diffusers' own decoder, in one go
        whole = model.decode(latents).sample
    assert whole.std() > 0.1
    reach = decode.halo(model.decoder)

    def tiled(tile: tuple[int, int] | None, margin: int) -> Tensor:
        chunks = torch.cat(list(decode.chunks(model, latents, tile, margin)), 2).clamp(-1, 1)
        pieces = torch.full_like(whole, torch.nan)
        for piece in decode.pieces(model, latents, tile, margin):
            pieces[:, :, piece.frames, piece.rows, piece.columns] = piece.pixels.clamp(-1, 1)
        assert torch.equal(chunks, pieces)
        return chunks

    for tile in ((5, 6), (1, 23), (17, 4), (16, 22), (40, 40), None):
        assert (tiled(tile, reach) - whole).abs().max() < 1e-13, tile
    assert (tiled((5, 6), reach - 1) - whole).abs().max() > 1e-12


def test_tiles_of_the_full_depth_equal_the_whole(
    recorded_vae: tuple[Recorded, VideoAutoencoder],
) -> None:
    vae = recorded_vae[1]
    latents = torch.randn(1, 16, 2, 3, 29)
    whole = vae.decode(latents)
    assert whole.shape == (1, 3, 5, 24, 232)
    mean, std = (torch.tensor(vae.model.config[k]).view(1, 16, 1, 1, 1) for k in STATISTICS)
    with torch.no_grad():
        expected = vae.model.decode(latents * std + mean).sample
        exact = deepcopy(vae.model).double().decode(latents.double() * std + mean).sample
    assert_within_budget("whole", whole, expected, exact)
    assert_within_budget("tiled", vae.decode(latents, tile=(2, 4)), expected, exact)
    frames = vae.decode_frames_uint8(latents[0])
    by_hand = ((expected[0].permute(1, 2, 3, 0) + 1) / 2 * 255).floor()
    assert frames.dtype == np.uint8 and frames.shape == (5, 24, 232, 3)
    off = np.abs(frames.astype(int) - by_hand.numpy().astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


STATISTICS = ("latents_mean", "latents_std")


def test_a_tile_bounds_what_the_upsampling_blocks_see() -> None:
    model = small_vae()
    reach, largest = decode.halo(model.decoder), [0, 0]

    def watch(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        largest[:] = [max(*pair) for pair in zip(largest, inputs[0].shape[-2:], strict=True)]

    hook = model.decoder.conv_out.register_forward_hook(watch)
    latents = torch.randn(1, 16, 2, 9, 60, dtype=torch.float64)
    frames = decode.chunks(model, latents, (4, 7))
    with torch.no_grad():
        assert next(frames).shape == (1, 3, 1, 18, 120)  # before any later frame is decoded
    hook.remove()
    assert largest == [18, 2 * (7 + 2 * reach)]


def test_images_are_clips_of_one_frame(components: tuple[Any, Any, Any]) -> None:
    vae = VideoAutoencoder(components[2])
    images = (torch.rand(3, 3, 24, 40) * 255).to(torch.uint8)
    latents = vae.encode_images(images)
    assert latents.shape == (3, 16, 1, 3, 5) and latents.dtype == torch.float32
    mean, std = (torch.tensor(vae.model.config[k]).view(1, 16, 1, 1, 1) for k in STATISTICS)
    wide = deepcopy(vae.model).double()
    for image, latent in zip(images, latents, strict=True):
        clip = (image.float() / 255 * 2 - 1)[None, :, None]
        expected, exact = (
            (model.encode(x).latent_dist.mean - mean) / std
            for model, x in ((vae.model, clip), (wide, clip.double()))
        )
        assert_within_budget("latent", latent, expected[0], exact[0])


def test_what_encoders_are_given_is_moved_to_where_they_are(
    components: tuple[Any, Any, Any],
) -> None:
    """On the device meta, which has no values and computes with nothing that is elsewhere."""
    text, tokenizer, vae = (deepcopy(part) for part in components)
    coder = VideoAutoencoder(vae.to("meta"))
    pixels, latents = torch.zeros(1, 3, 5, 32, 48), torch.zeros(1, 16, 2, 4, 6)
    with pytest.raises(NotImplementedError, match="meta"):  # it goes there, and comes back
        coder.encode(pixels)
    with pytest.raises(NotImplementedError, match="meta"):
        coder.decode(latents)
    assert coder.encode(pixels.to("meta")).device.type == "meta"
    assert coder.decode(latents.to("meta"), tile=(2, 3)).shape == pixels.shape
    assert [chunk.shape[2] for chunk in coder.decode_chunks(latents.to("meta"))] == [1, 4]
    encoder = TextEncoder(text.to("meta"), tokenizer, text_len=32)
    with pytest.raises(RuntimeError, match="meta tensors"):  # asked whether all words are real
        encoder.encode("a word")


def test_weights_are_read_to_the_device_that_is_asked_for(tmp_path: Path) -> None:
    text, tokenizer, vae = tiny.random_components(seed=0)
    save_bundle(tmp_path, vae=vae, text_encoder=text, tokenizer=tokenizer)
    for load in (load_vae, load_text_encoder):
        model = load(tmp_path, device="meta").model
        places = [*model.parameters(), *model.buffers()]
        assert {x.device.type for x in places} == {"meta"}
        assert {x.device.type for x in load(tmp_path).model.parameters()} == {"cpu"}


def test_inputs_that_do_not_fit_are_refused(components: tuple[Any, Any, Any]) -> None:
    vae = VideoAutoencoder(components[2])
    with pytest.raises(LumosXError, match=r"1 \+ 4k frames, got 4"):
        vae.encode(torch.zeros(1, 3, 4, 16, 16))
    with pytest.raises(LumosXError, match="pixels must be"):
        vae.encode(torch.zeros(1, 4, 1, 16, 16))
    with pytest.raises(LumosXError, match="latents must be"):
        vae.decode(torch.zeros(1, 3, 1, 4, 4))
    with pytest.raises(LumosXError, match="tile must be"):
        vae.decode(torch.zeros(1, 16, 1, 4, 4), tile=(0, 4))
    with pytest.raises(LumosXError, match="not finite"):
        vae.decode_frames_uint8(torch.full((16, 1, 4, 4), torch.nan))
    eight = AutoencoderKLWan(base_dim=2, z_dim=8, num_res_blocks=1)
    with pytest.raises(LumosXError, match="8 latent channels, but 16 means"):
        VideoAutoencoder(eight)


# -- the tiny components ---------------------------------------------------------------------------


def test_tiny_components_are_the_same_for_the_same_seed(components: tuple[Any, Any, Any]) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    again: Any = tiny.random_components(seed=0)
    other: Any = tiny.random_components(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    for i in (0, 2):
        states = [made[i].state_dict() for made in (components, again, other)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_decodes_to_visible_colour(seed: int) -> None:
    vae = VideoAutoencoder(tiny.random_components(seed)[2])
    noise = torch.randn(1, 16, 3, 10, 12, generator=torch.Generator().manual_seed(7))
    pixels = vae.decode(noise)[0]
    assert (pixels.abs() == 1).float().mean() < 0.05
    assert (pixels.std((2, 3)) > 0.03).all()  # every channel of every frame has a picture
    assert pixels.std((1, 2, 3)).min() > 0.2
    assert (pixels[0] - pixels[1]).std() > 0.1  # and it is not grey
    assert (pixels[:, 1:] - pixels[:, :-1]).abs().mean() > 0.02  # and it moves
    latents = vae.encode_images(torch.rand(4, 3, 48, 48) * 2 - 1)
    assert 0.3 < latents.std() < 3

"""Where weights and encoders come from: the right ones are found, others are refused by name."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import read_manifest
from lumosx_rt.artifact.source import (
    CheckpointSource,
    RandomSource,
    encoders_of,
    random_transformer,
    source_of,
    weights_digest,
)
from lumosx_rt.reference.backbones.config import PRESETS, LumosXConfig
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.checkpoints.bundle import Component, find_bundle
from lumosx_rt.reference.errors import LumosXError

SMALL = LumosXConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=1, text_dim=8, text_len=16)


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)


def flip(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def hashed(monkeypatch):
    """The parts whose content was really read and hashed."""
    parts: list[str] = []
    right = Component.sha256.func

    def sha256(part):
        parts.append(part.path.name)
        return right(part)

    monkeypatch.setattr(Component, "sha256", property(sha256))
    return parts


# -- random weights -----------------------------------------------------------------------------


def test_random_weights_are_those_of_their_seed():
    before = torch.random.get_rng_state()
    one, same, other = (random_transformer(SMALL, seed) for seed in (1, 1, 2))
    assert (torch.random.get_rng_state() == before).all()
    states = [model.state_dict() for model in (one, same, other)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert not all((states[0][name] == states[2][name]).all() for name in states[0])
    assert not one.training and not any(p.requires_grad for p in one.parameters())


def test_the_digest_is_of_names_shapes_and_values():
    model = random_transformer(SMALL, 1)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    assert weights_digest(model) == digest.hexdigest()
    model.head.head.bias[3] += 1e-3
    assert weights_digest(model) != digest.hexdigest()


def test_a_random_source_knows_itself():
    source = RandomSource("tiny", 5)
    model = source.load()
    expected = {"source": "random", "preset": "tiny", "seed": 5, "sha256": weights_digest(model)}
    assert source.identity() == RandomSource("tiny", 5).identity() == expected
    assert RandomSource("tiny", 6).identity()["sha256"] != expected["sha256"]
    assert model.config == PRESETS["tiny"]
    text = refusal(RandomSource, "2b")
    assert "'2b'" in text and all(name in text for name in PRESETS)


# -- checkpoints --------------------------------------------------------------------------------


def test_a_checkpoint_is_known_by_the_hash_of_its_files(micro_bundle):
    source = CheckpointSource(find_bundle(micro_bundle))
    part = find_bundle(micro_bundle).transformer
    total = hashlib.sha256()
    for file in sorted([*part.files, part.config]):
        total.update(f"{file.name}\n{file.stat().st_size}\n".encode() + file.read_bytes())
    assert source.identity() == {
        "source": "bundle",
        "kind": "diffusers",
        "sha256": total.hexdigest(),
    }
    assert set(source.hashes) == {"transformer", "text_encoder", "tokenizer", "vae"}
    assert source.load().config == load_transformer(micro_bundle).config


def test_a_bundle_without_a_transformer_is_no_checkpoint(micro_bundle, copied):
    bundle = copied(micro_bundle)
    shutil.rmtree(bundle / "transformer")
    text = refusal(CheckpointSource(find_bundle(bundle)).identity)
    assert "no transformer" in text and "vae" in text


def test_the_weights_of_an_engine_are_found_again(micro, micro_bundle, drawn, own_cache):
    manifest = read_manifest(micro.folder)
    assert "--checkpoint" in refusal(source_of, manifest, None)
    named = source_of(manifest, micro_bundle)
    assert named.bundle.root == micro_bundle and named.config == LumosXConfig(**manifest.model)
    cache.remember(find_bundle(micro_bundle), {"transformer": manifest.checkpoint["sha256"]})
    assert source_of(manifest, None).bundle.root == micro_bundle
    assert source_of(read_manifest(drawn.folder), None) == RandomSource("tiny", 0)


def test_other_weights_are_refused(micro, micro_bundle, drawn, copied, own_cache):
    manifest = read_manifest(micro.folder)
    bundle = copied(micro_bundle)
    flip(bundle / "transformer" / "diffusion_pytorch_model.safetensors")
    text = refusal(source_of, manifest, bundle)
    assert manifest.checkpoint["sha256"][:12] in text and "--checkpoint" in text
    # also where the cache remembers them
    cache.remember(find_bundle(bundle), {"transformer": manifest.checkpoint["sha256"]})
    assert "other weights" in refusal(source_of, manifest, None)
    # also where they are drawn: another version of torch may draw others
    manifest = read_manifest(drawn.folder)
    other = replace(manifest, checkpoint=manifest.checkpoint | {"seed": 1})
    assert "other weights" in refusal(source_of, other, None)


# -- encoders -----------------------------------------------------------------------------------


def test_encoders_are_looked_for_in_the_engine_first(drawn, micro_bundle, own_cache):
    manifest = read_manifest(drawn.folder)
    found = encoders_of(manifest, drawn.folder, micro_bundle)
    assert found.root == drawn.folder / "components"


def test_encoders_are_looked_for_where_one_says_and_in_the_cache(
    micro, micro_bundle, copied, own_cache
):
    manifest = read_manifest(micro.folder)
    text = refusal(encoders_of, manifest, micro.folder, None)
    assert "--components" in text and "--self-contained" in text
    assert encoders_of(manifest, micro.folder, micro_bundle).root == micro_bundle
    moved = copied(micro_bundle)
    cache.remember(find_bundle(moved), manifest.components)
    assert encoders_of(manifest, micro.folder, None).root == moved
    shutil.rmtree(moved)
    assert "--components" in refusal(encoders_of, manifest, micro.folder, None)


@pytest.mark.parametrize(
    "part, file",
    [
        ("vae", "vae/diffusion_pytorch_model.safetensors"),
        ("vae", "vae/config.json"),
        ("text_encoder", "text_encoder/model.safetensors"),
        ("tokenizer", "tokenizer/tokenizer.json"),
    ],
)
def test_a_foreign_component_is_refused_by_name(micro, micro_bundle, copied, own_cache, part, file):
    manifest, bundle = read_manifest(micro.folder), copied(micro_bundle)
    flip(bundle / file)
    for components in (bundle, None):
        text = refusal(encoders_of, manifest, micro.folder, components)
        assert f"{part} is not the one" in text and str(bundle) in text
        assert text.count("is not the one") == 1
        cache.remember(find_bundle(bundle), manifest.components)  # the second time it is found
    engine = rt.load(micro.folder, components=bundle, provider="cpu")
    assert part in refusal(engine.prepare, rt.Scene("s", "A lake."), size=rt.VideoSize(1, 16, 16))


def test_a_missing_component_is_named(micro, micro_bundle, copied, own_cache):
    bundle = copied(micro_bundle)
    shutil.rmtree(bundle / "vae")
    shutil.rmtree(bundle / "tokenizer")
    text = refusal(encoders_of, read_manifest(micro.folder), micro.folder, bundle)
    assert "no vae" in text and "no tokenizer" in text and "no text_encoder" not in text


def test_a_bundle_that_shares_a_part_does_not_hide_the_right_one(
    micro, micro_bundle, copied, own_cache
):
    """Many checkpoints come with the same text encoder."""
    manifest = read_manifest(micro.folder)
    cache.remember(find_bundle(micro_bundle), manifest.components)
    other = copied(micro_bundle)
    flip(other / "vae" / "diffusion_pytorch_model.safetensors")
    cache.remember(find_bundle(other), find_bundle(other).sha256)
    assert encoders_of(manifest, micro.folder, None).root == micro_bundle


# -- the cache ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"LUMOSX_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/lumosx-rt"),
        ({"HOME": "/c"}, "/c/.cache/lumosx-rt"),
        ({"XDG_CACHE_HOME": "", "LUMOSX_CACHE": "", "HOME": "/c"}, "/c/.cache/lumosx-rt"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("LUMOSX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_dir() == Path(expected)


def test_content_is_hashed_once_while_it_does_not_change(micro_bundle, copied, own_cache, hashed):
    bundle = copied(micro_bundle)

    def part() -> Component:
        return find_bundle(bundle).require("vae")

    first = cache.content_hash(part())
    assert cache.content_hash(part()) == first and hashed == ["diffusion_pytorch_model.safetensors"]
    for number, file in enumerate(("config.json", "diffusion_pytorch_model.safetensors"), 2):
        flip(bundle / "vae" / file)
        changed = cache.content_hash(part())
        assert changed != first and len(hashed) == number
        flip(bundle / "vae" / file)
        os.utime(bundle / "vae" / file, ns=(1, number))
    assert cache.content_hash(part()) == first


@pytest.mark.parametrize("note", ["", "{", "[]", "null", "5", "{}", '{"stamp": 1}', '{"root": 5}'])
def test_a_damaged_note_costs_time_and_nothing_else(micro_bundle, own_cache, hashed, note):
    part = find_bundle(micro_bundle).require("tokenizer")
    right = cache.content_hash(part)
    cache.remember(find_bundle(micro_bundle), {"tokenizer": right})
    notes = [path for path in own_cache.rglob("*") if path.is_file()]
    assert len(notes) == 2 and len(hashed) == 1
    for path in notes:
        path.write_text(note)
    assert cache.recall(right) is None
    assert cache.content_hash(part) == right and len(hashed) == 2
    cache.remember(find_bundle(micro_bundle), {"tokenizer": right})
    assert cache.recall(right).root == micro_bundle
    assert cache.content_hash(part) == right and len(hashed) == 2


def test_a_cache_that_cannot_be_written_does_no_harm(micro_bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUMOSX_CACHE", str(tmp_path / "file" / "cache"))
    bundle = find_bundle(micro_bundle)
    assert cache.content_hash(bundle.require("vae")) == bundle.sha256["vae"]
    cache.remember(bundle, bundle.sha256)
    assert cache.recall(bundle.sha256["vae"]) is None


def test_the_cache_holds_notes_and_no_weights(micro, shared):
    notes = [path for path in (shared / "cache").rglob("*") if path.is_file()]
    assert notes and all(path.stat().st_size < 10_000 for path in notes)
    assert all(isinstance(json.loads(path.read_text()), dict) for path in notes)

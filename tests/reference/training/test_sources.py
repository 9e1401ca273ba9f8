"""Prompt folders with clips, and the latents kept of a source."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.robustness import toy
from benchmarks.robustness.toy import SIZE, OwnLooks, Toy
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.binding import bind_scene
from lumosx_rt.reference.scenes.clips import read_clip, write_clip
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT
from lumosx_rt.reference.training.augment import augment_scene
from lumosx_rt.reference.training.latents import LatentCache, build_cache
from lumosx_rt.reference.training.recipe import AugmentedSource
from lumosx_rt.reference.training.sources import FolderSource, Source


@pytest.fixture(scope="module")
def encoders():
    return toy.encoders()


# -- prompt folders -------------------------------------------------------------------------------


def clip(height: int, width: int, frames: int = 7) -> np.ndarray:
    """Columns get brighter to the right; every frame is darker than the one before."""
    ramp = np.linspace(60, 250, width)[None, None, :, None]
    fade = np.linspace(1, 0.5, frames)[:, None, None, None]
    return np.broadcast_to(ramp * fade, (frames, height, width, 3)).astype(np.uint8)


@pytest.fixture
def folders(tmp_path) -> Path:
    root = tmp_path / "clips"
    for i, size in enumerate([(32, 48), (64, 200)]):
        Toy().scene(i).save(root / f"scene{i}")
        write_clip(root / f"scene{i}" / "video.mp4", clip(*size))
    return root


def test_folders_give_scenes_with_their_clips(folders: Path) -> None:
    source = FolderSource(folders, SIZE)
    assert isinstance(source, Source) and source.name == "clips" and len(source) == 2
    scene, frames = source.item(0)
    assert scene.caption == Toy().scene(0).caption
    assert frames.dtype == np.uint8 and frames.shape == (5, 32, 48, 3)
    assert (frames == read_clip(folders / "scene0" / "video.mp4")[0][:5]).all()


def test_other_sizes_are_scaled_to_cover_and_cropped_in_the_middle(folders: Path) -> None:
    frames = FolderSource(folders, SIZE).item(1)[1].astype(float)
    assert frames.shape == (5, 32, 48, 3)
    # half of 64x200 is 32x100; columns 26..74 of it are left
    wanted = clip(64, 200)[:5, 32:].astype(float)[:, :, 52:148].reshape(5, 32, 48, 2, 3).mean(3)
    assert np.abs(frames - wanted).max() < 6


def test_the_fingerprint_follows_every_file(folders: Path) -> None:
    first = FolderSource(folders, SIZE).fingerprint
    assert FolderSource(folders, SIZE).fingerprint == first
    assert FolderSource(folders, VideoSize(5, 32, 40)).fingerprint != first
    write_clip(folders / "scene0" / "video.mp4", clip(32, 48)[::-1])
    assert FolderSource(folders, SIZE).fingerprint != first


def test_all_problems_of_all_folders_in_one_error(folders: Path) -> None:
    write_clip(folders / "short" / "video.mp4", clip(32, 48, frames=4))
    (folders / "short" / "caption.txt").write_text("A dog.")
    (folders / "scene0" / "caption.txt").write_text("Nobody.")
    (folders / "scene1" / "video.mp4").write_bytes(b"no clip")
    with pytest.raises(LumosXError) as error:
        FolderSource(folders, SIZE)
    message = str(error.value)
    assert "3 problems" in message and "4 frames, 5 are needed" in message
    assert "not in the caption" in message and "scene1: clip" in message


def test_folders_without_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LumosXError, match="no prompt folder"):
        FolderSource(tmp_path, SIZE)
    with pytest.raises(LumosXError, match="no folder"):
        FolderSource(tmp_path / "missing", SIZE)


# -- the cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", [0, 2, 6])
def test_what_is_kept_is_what_binding_gives(i: int, tmp_path: Path, encoders) -> None:
    source = Toy(7)
    cache = build_cache(tmp_path, source, SIZE, *encoders)
    scene, frames = source.item(i)
    layout, binding = bind_scene(scene, SIZE, *encoders)
    kept = cache[i]
    assert (kept.lone, kept.subjects) == (layout.lone, layout.subjects)
    assert torch.equal(kept.references[0], binding.references.half())
    text_encoder, vae = encoders
    tokens = int(text_encoder.tokenize(scene.caption)[1].sum())
    assert torch.equal(kept.text, binding.text[:tokens].half()) and not binding.text[tokens:].any()
    pixels = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None] / 255 * 2 - 1
    error = (kept.video.float() - vae.encode(pixels)[0]).abs().max()
    assert kept.video.shape == (16, 2, 4, 6) and float(error) < 5e-3
    ids = text_encoder.tokenize(scene.caption)[0]
    for row, reference in zip(kept.masks, scene.references, strict=True):
        assert (row == text_encoder.word_mask(ids, reference.word)).all() and row.any()
    null = text_encoder.encode(NEGATIVE_PROMPT)
    assert torch.equal(cache.null_text, null[: len(cache.null_text)].half())


def test_buckets_hold_equal_numbers_of_references(tmp_path: Path, encoders) -> None:
    cache = build_cache(tmp_path, Toy(12), SIZE, *encoders)
    wanted: dict[int, list[int]] = {}
    for i in range(12):
        wanted.setdefault(len(Toy().scene(i).references), []).append(i)
    assert {n: bucket.tolist() for n, bucket in cache.buckets.items()} == wanted
    assert set(wanted) == {0, 2, 4}


@pytest.mark.parametrize("kind", [Toy, OwnLooks])
def test_variants_are_other_pictures_of_the_same_references(kind, tmp_path: Path, encoders) -> None:
    source = kind(2)
    assert isinstance(source, AugmentedSource) == (kind is OwnLooks)
    cache = build_cache(tmp_path, source, SIZE, *encoders, variants=2, strength=0.7)
    plain = build_cache(tmp_path / "plain", source, SIZE, *encoders)
    for i in range(2):
        assert cache[i].references.shape[0] == 3
        assert torch.equal(cache[i].references[0], plain[i].references[0])
        for variant in (1, 2):
            look = source.scene(i, variant)
            if kind is Toy:
                look = augment_scene(
                    source.scene(i), (i, variant), height=32, width=48, strength=0.7
                )
            wanted = bind_scene(look, SIZE, *encoders)[1].references.half()
            assert torch.equal(cache[i].references[variant], wanted)
            assert not torch.equal(cache[i].references[variant], cache[i].references[0])


def test_a_killed_build_goes_on_with_whole_shards(tmp_path, encoders) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        assert (done, total) == (3, 8)
        raise Killed

    with pytest.raises(Killed):
        build_cache(tmp_path / "killed", Toy(8), SIZE, *encoders, progress=kill, shard_examples=3)
    with pytest.raises(LumosXError, match="2 of 3 shards are missing"):
        LatentCache(tmp_path / "killed")
    (tmp_path / "killed" / ".shard-00001.safetensors.99.partial").write_bytes(b"half")
    source, told = Toy(8), []
    cache = build_cache(
        tmp_path / "killed", source, SIZE, *encoders,
        progress=lambda *done: told.append(done), shard_examples=3,
    )  # fmt: skip
    assert source.asked == 5 and told == [(6, 8), (8, 8)]
    whole = build_cache(tmp_path / "whole", Toy(8), SIZE, *encoders)
    for got, wanted in zip(cache, whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got[:3], wanted[:3], strict=True))
        assert (got.masks == wanted.masks).all() and got[4:] == wanted[4:]
    again = Toy(8)
    build_cache(tmp_path / "killed", again, SIZE, *encoders, shard_examples=3)
    assert again.asked == 0


def test_a_stale_cache_is_refused(tmp_path: Path, encoders) -> None:
    build_cache(tmp_path, Toy(2), SIZE, *encoders)
    text_encoder, vae = toy.encoders(1)
    with pytest.raises(LumosXError, match="with another source; remove it"):
        build_cache(tmp_path, Toy(2, fingerprint="second"), SIZE, *encoders)
    with pytest.raises(LumosXError, match="with another vae;"):
        build_cache(tmp_path, Toy(2), SIZE, encoders[0], vae)
    with pytest.raises(LumosXError, match="with another text_encoder;"):
        build_cache(tmp_path, Toy(2), SIZE, text_encoder, encoders[1])
    with pytest.raises(LumosXError, match="with another variants, strength;"):
        build_cache(tmp_path, Toy(2), SIZE, *encoders, variants=1)
    small = VideoSize(1, 32, 48)
    with pytest.raises(LumosXError, match="with another size;"):
        build_cache(tmp_path, Toy(2, size=small), small, *encoders)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"format": 2}))
    with pytest.raises(LumosXError, match="format 2, this version reads 1"):
        LatentCache(tmp_path)


def test_clips_of_another_size_are_refused(tmp_path: Path, encoders) -> None:
    with pytest.raises(LumosXError, match=r"example 0: the clip must be uint8 \[9, 32, 48, 3\]"):
        build_cache(tmp_path, Toy(2), VideoSize(9, 32, 48), *encoders)
    assert not list(tmp_path.glob("*shard*"))


def test_words_that_bind_nothing_are_refused(tmp_path: Path, encoders, monkeypatch) -> None:
    scene = Toy().scene(0)
    monkeypatch.setattr(Toy, "scene", lambda self, i: replace(scene, caption="nothing of it"))
    with pytest.raises(LumosXError, match="spells no tokens"):
        build_cache(tmp_path, Toy(1), SIZE, *encoders)


def test_a_missing_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LumosXError, match="build it first"):
        LatentCache(tmp_path)


@pytest.mark.slow  # that workers are started, and told of, is tested below
def test_workers_make_the_same_latents(tmp_path: Path, encoders, monkeypatch) -> None:
    """Shards are made by processes that are started afresh."""
    monkeypatch.syspath_prepend(str(Path(toy.__file__).parents[2]))
    source = Toy(4)
    told: list[int] = []
    made = build_cache(
        tmp_path / "two", source, SIZE, *encoders,
        variants=1, processes=2, progress=lambda done, _: told.append(done), shard_examples=2,
    )  # fmt: skip
    assert source.asked == 0 and told == [2, 4]
    alone = build_cache(tmp_path / "one", Toy(4), SIZE, *encoders, variants=1)
    for got, wanted in zip(made, alone, strict=True):
        assert torch.equal(got.video, wanted.video) and torch.equal(got.text, wanted.text)
        assert torch.equal(got.references, wanted.references)


def test_a_worker_that_dies_is_told(tmp_path: Path, encoders, monkeypatch) -> None:
    root = str(Path(toy.__file__).parents[2])
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", root)])
    with pytest.raises(LumosXError, match="a worker died .* take processes=1"):
        build_cache(tmp_path, Toy(2), SIZE, *encoders, processes=2, shard_examples=1)


def test_pictures_are_not_kept_open(tmp_path: Path, encoders) -> None:
    """Examples outlive the folder's rebuilding: what is mapped is what was written."""
    cache = build_cache(tmp_path, Toy(2), SIZE, *encoders)
    before = cache[1].video.clone()
    assert isinstance(Toy().scene(0).references[0].image, Image.Image)
    for file in tmp_path.glob("shard*"):
        file.unlink()
    assert torch.equal(cache[1].video, before)

"""The tiny LumosX from nothing, in miniature: every part once, found again, and resumed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.encoders.umt5 import load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import load_vae
from lumosx_rt.reference.world.train.autoencoder import Lesson, new_autoencoder, train_autoencoder
from lumosx_rt.reference.world.train.captions import TEXT_LEN
from lumosx_rt.reference.world.train.course import DEFAULTS, TINY, Course, Phase

SMALL = {"pool": (1, 1), "batch": (1, 1)}
BRIEF = Course(
    captions=2,
    lessons=(Lesson("pictures", 1, **SMALL), Lesson("clips", 1, **SMALL)),
    phases=(
        Phase("one", {1: 3}, 2, still=True, streams=2, seeds=2),
        Phase("many", {2: 2}, 2, streams=1, seeds=1),
    ),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("course")
    parts: list[str] = []
    bundle = BRIEF.run(folder, processes=1, progress=lambda part, *rest: parts.append(part))
    return bundle, parts


@pytest.mark.slow
def test_every_part_is_done_once_in_its_order(made):
    _, parts = made
    order = ["text", "pictures", "clips", "latents of one", "one", "latents of many", "many"]
    assert list(dict.fromkeys(parts)) == list(dict.fromkeys(order))
    assert parts.count("text") == 2 and parts.count("pictures") == 1 and parts.count("one") == 2


@pytest.mark.slow
def test_the_bundle_has_all_four_parts(made):
    bundle, _ = made
    encoder, vae = load_text_encoder(bundle, TEXT_LEN), load_vae(bundle)
    model = load_transformer(bundle)
    assert model.config.text_len == TEXT_LEN and model.config.text_dim == encoder.text_dim
    deviations = set(vae.model.config.latents_std)
    assert len(deviations) == 1 and deviations != {1.0}


@pytest.mark.slow
def test_a_finished_course_does_nothing(made):
    bundle, _ = made
    again: list[str] = []
    assert BRIEF.run(bundle.parent, progress=lambda part, *rest: again.append(part)) == bundle
    assert not again


def test_the_shipped_course_trains_on_nothing_that_is_held_out():
    for phase in TINY.phases:
        assert not phase.source.held_out
        assert not any(phase.source.story(i).held_out for i in range(0, len(phase.source), 97))


def test_the_shipped_checkpoint_says_what_it_was_trained_for():
    file = Path(__file__).parents[4] / "checkpoints" / "tiny" / "defaults.json"
    assert json.loads(file.read_text("utf-8")) == DEFAULTS


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("shown", ["pictures", "clips"])
def test_a_killed_vae_goes_on_as_if_nothing_had_been(shown, tmp_path):
    lesson = Lesson(shown, 2, **SMALL, save_every=1)
    whole = new_autoencoder()
    train_autoencoder(whole, lesson, tmp_path / "whole.safetensors")

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 1:
            raise Killed

    file = tmp_path / "killed.safetensors"
    with pytest.raises(Killed):
        train_autoencoder(new_autoencoder(), lesson, file, kill)
    resumed = new_autoencoder(seed=1)  # whose own weights must not matter
    steps: list[int] = []
    train_autoencoder(resumed, lesson, file, lambda step, metrics: steps.append(step))
    assert steps == [1]
    expected, found = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_clips_change_nothing_about_pictures(tmp_path):
    model = new_autoencoder()
    picture = torch.rand(1, 3, 1, 64, 72) * 2 - 1
    clip = torch.rand(1, 3, 5, 64, 72) * 2 - 1

    def seen(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.decode(model.encode(pixels).latent_dist.mode()).sample

    before = seen(picture), seen(clip)
    train_autoencoder(model, Lesson("clips", 1, **SMALL), tmp_path / "clips.safetensors")
    assert torch.equal(seen(picture), before[0])
    assert not torch.equal(seen(clip), before[1])
    assert load_file(tmp_path / "clips.safetensors")

"""Stories as prompt folders: the same words in the same groups, and the clip beside them."""

import re

import numpy as np

from lumosx_rt.reference.scenes.clips import read_clip
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.scenes import CLIP_FILE, WorldSource, scene_of, write_story
from lumosx_rt.reference.world.story import story


def groups(scene):
    return [[reference.word for reference in subject.references] for subject in scene.subjects]


def test_every_word_of_a_scene_is_a_word_of_its_caption():
    for seed in range(12):
        scene = scene_of(story(seed, 1 + seed % 3, held_out=True))
        said = re.findall(r"\w+", scene.caption)
        assert all(reference.word in said for reference in scene.references)


def test_a_group_is_one_person_with_what_belongs_to_it():
    told = story(4, 3)
    wanted = {p.word: [a.word for a in p.attributes] for p in told.people}
    assert {first: rest for first, *rest in groups(scene_of(told))} == wanted


def test_half_of_the_pairs_come_in_another_order_than_the_captions():
    others = 0
    for seed in range(60):
        told = story(seed, 2)
        others += [words[0] for words in groups(scene_of(told))] != [p.word for p in told.people]
    assert 15 < others < 45  # four standard deviations


def test_a_prompt_folder_reads_back_as_the_same_scene_and_clip(tmp_path):
    told = story(2, 3)
    folder = write_story(told, tmp_path / "scene")
    scene, found = scene_of(told), Scene.load(folder)
    assert found.caption == scene.caption and groups(found) == groups(scene)
    assert [r.word for r in found.references] == [r.word for r in scene.references]
    assert (found.fitted(64, 144) == scene.fitted(64, 144)).all()
    clip, rate = read_clip(folder / CLIP_FILE)
    assert rate == 8
    target = draw.frames_of(told).astype(np.float64)
    luma = np.array([0.299, 0.587, 0.114])
    assert decibels(clip @ luma, target @ luma) > 30
    assert decibels(quarters(clip), quarters(target)) > 30  # H.264 keeps no finer colour


def quarters(frames):
    """Means of two by two pixels."""
    return frames.reshape(9, 32, 2, 72, 2, 3).mean((2, 4))


def decibels(a, b):
    return 10 * np.log10(255**2 / np.mean((a - b) ** 2))


def test_a_source_is_known_by_its_members_and_shows_the_first_frames():
    source = WorldSource([(7, 2), (8, 1)], frames=1)
    scene, clip = source.item(1)
    assert len(source) == 2 and scene.name == story(8, 1).name
    assert (clip == draw.frames_of(story(8, 1))[:1]).all()
    assert source.fingerprint != WorldSource([(8, 1), (7, 2)], frames=1).fingerprint

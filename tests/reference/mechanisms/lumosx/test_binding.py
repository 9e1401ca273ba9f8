"""Which words bind which picture: the template against docs/spec.md#word-weights, and a sample
scene bound."""

from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lumosx_rt.reference.encoders import random as tiny
from lumosx_rt.reference.encoders.umt5 import TextEncoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.binding import (
    Binding,
    bind_scene,
    word_masks,
    word_template,
)
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT
from tests.helpers import oracle

SAMPLES = Path(__file__).parents[4] / "samples"
TEXT_LEN = 512
SIZE = VideoSize(frames=5, height=56, width=72)


# -- the template (docs/spec.md#word-weights) ------------------------------------------------------


@st.composite
def masked_layouts(draw: st.DrawFn) -> tuple[SceneLayout, list[list[bool]]]:
    layout = SceneLayout(
        video_frames=draw(st.integers(1, 4)),
        height=2,
        width=2,
        lone=draw(st.integers(0, 3)),
        subjects=tuple(draw(st.lists(st.integers(1, 3), max_size=4))),
    )
    row = st.lists(st.booleans(), min_size=5, max_size=5)
    count = layout.references
    return layout, draw(st.lists(row, min_size=count, max_size=count))


@given(masked_layouts())
def test_template_is_omega(case: tuple[SceneLayout, list[list[bool]]]) -> None:
    layout, masks = case
    given_masks = np.array(masks, np.bool_).reshape(layout.references, 5)
    template = word_template(given_masks, layout)
    assert template.dtype == np.float32 and template.shape == given_masks.shape
    expected = oracle.word_weights(oracle.Facts(**asdict(layout)), masks)
    np.testing.assert_allclose(template, np.reshape(expected, template.shape), atol=1e-6)


def test_template_in_numbers() -> None:
    """Three people; all of them are called by the first word, and the last two share the third."""
    layout = SceneLayout(video_frames=1, height=2, width=2, lone=1, subjects=(2, 1, 1))
    masks = np.zeros((5, 4), np.bool_)
    for reference, words in enumerate([(1,), (0,), (1,), (0, 2), (0, 2)]):
        masks[reference, list(words)] = True
    assert word_template(masks, layout).tolist() == [
        [0, 1, 0, 0],  # a lone image neither promotes nor suppresses people's words
        [0, 1, -1, 0],
        [0, 1, -1, 0],
        [0, -0.5, 0.5, 0],
        [0, -0.5, 0.5, 0],
    ]
    assert masks.sum() == 7, "the masks are left as they were"


# -- sizes -----------------------------------------------------------------------------------------


def test_released_size() -> None:
    assert VideoSize() == VideoSize(frames=81, height=480, width=832)
    assert VideoSize().latent == (21, 60, 104) and VideoSize().grid == (21, 30, 52)


@given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 40))
def test_sizes(quads: int, rows: int, columns: int) -> None:
    size = VideoSize(frames=1 + 4 * quads, height=8 * rows, width=8 * columns)
    assert size.latent == (1 + quads, rows, columns)
    assert size.grid == (1 + quads, (rows + 1) // 2, (columns + 1) // 2)


def test_one_error_for_all_of_a_size() -> None:
    with pytest.raises(LumosXError) as refused:
        VideoSize(frames=80, height=484, width=0)
    message = str(refused.value)
    assert "frames must be 1 + 4k, got 80; the nearest is 77 or 81" in message
    assert "height must be a multiple of 8, got 484" in message
    assert "width: got 0, accepted are integers 8 to" in message


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"frames": -3}, {"frames": 4}, {"width": -8}])
def test_impossible_sizes(wrong: dict[str, int]) -> None:
    with pytest.raises(LumosXError, match=str(*wrong.values())):
        VideoSize(**wrong)


# -- scenes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def components() -> tuple[TextEncoder, VideoAutoencoder]:
    model, tokenizer, vae = tiny.random_components(seed=0)
    return TextEncoder(model, tokenizer, TEXT_LEN), VideoAutoencoder(vae)


def picture(word: str) -> Reference:
    """A picture that is not there: words are looked for before any picture is opened."""
    return Reference(word=word, image=Path("nowhere") / f"{word}.png")


def masks_of(scene: Scene, encoder: TextEncoder) -> NDArray[np.bool_]:
    prompt = encoder.prompt(scene.clean_caption)
    return word_masks(scene.name, prompt, scene.clean_words, encoder)


def test_words_that_bind_nothing_are_named_together(components: tuple[Any, Any]) -> None:
    scene = Scene(
        name="walk",
        caption="A girl with a red scarf walks a dog. " + "far " * 125 + "lamp",
        background=picture("moon"),
        objects=(picture("dog"), picture("carf"), picture("lamp")),
        subjects=(Subject((picture("girl"), picture("Scarf"))),),
    )
    with pytest.raises(LumosXError) as refused:
        masks_of(scene, components[0])
    message = str(refused.value)
    assert "scene 'walk': 4 problems" in message
    lost = [line for line in message.splitlines() if "spells no tokens" in line]
    for word, line in zip(("moon", "carf", "lamp", "Scarf"), lost, strict=True):
        assert f"'{word}'" in line and str(TEXT_LEN) in line and "reword" in line


def test_word_masks_mark_the_bytes_of_every_occurrence(components: tuple[Any, Any]) -> None:
    caption = "a cat and a cat"
    scene = Scene(name="cats", caption=caption, objects=(picture("cat"), picture("and a")))
    masks = masks_of(scene, components[0])
    assert masks.shape == (2, TEXT_LEN) and masks.dtype == np.bool_
    for mask, spans in zip(masks, ([(2, 6), (12, 16)], [(6, 12)]), strict=True):
        assert np.flatnonzero(mask).tolist() == [i for a, b in spans for i in range(a, b)]
        assert all(f" {caption}"[a:b] in (" cat", " and a") for a, b in spans)


@pytest.fixture(scope="module")
def bound(components: tuple[TextEncoder, VideoAutoencoder]) -> tuple[Scene, SceneLayout, Binding]:
    scene = Scene.from_folder(SAMPLES / "two-friends")
    return scene, *bind_scene(scene, SIZE, *components)


def test_bound_shapes(bound: tuple[Scene, SceneLayout, Binding]) -> None:
    scene, layout, binding = bound
    assert layout == SceneLayout(video_frames=2, height=4, width=5, lone=2, subjects=(3, 3))
    assert len(scene.references) == layout.references == 8
    assert binding.text.shape == binding.null_text.shape == (TEXT_LEN, 64)
    assert binding.template.shape == (8, TEXT_LEN)
    assert binding.references.shape == (8, 16, 7, 9)
    tensors = (binding.text, binding.null_text, binding.template, binding.references)
    for tensor in tensors:
        assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all()
        assert not tensor.requires_grad


def test_bound_words(bound: tuple[Scene, SceneLayout, Binding]) -> None:
    """One token per byte, so the words' places can be counted in the caption."""
    scene, _, binding = bound
    text = f" {scene.caption}"
    assert all(text.count(f" {reference.word}") == 1 for reference in scene.references)

    def places(*references: Reference) -> set[int]:
        starts = [(text.index(f" {r.word}"), len(r.word) + 1) for r in references]
        return {i for start, length in starts for i in range(start, start + length)}

    people = [subject.references for subject in scene.subjects]
    rows: list[tuple[set[int], set[int]]] = [
        (places(r), set()) for r in scene.references[: scene.lone]
    ]
    rows += [(places(*people[0]), places(*people[1]))] * 3
    rows += [(places(*people[1]), places(*people[0]))] * 3
    for row, (promoted, suppressed) in zip(binding.template.tolist(), rows, strict=True):
        expected = [(i in promoted) - (i in suppressed) for i in range(TEXT_LEN)]
        assert row == expected
        assert promoted


def test_bound_texts(
    bound: tuple[Scene, SceneLayout, Binding], components: tuple[TextEncoder, VideoAutoencoder]
) -> None:
    scene, _, binding = bound
    length = len(scene.caption.encode()) + 2  # a space before, an end token after
    assert binding.text[:length].abs().sum(1).min() > 0 and not binding.text[length:].any()
    assert len(NEGATIVE_PROMPT) > 100 and "静态" in NEGATIVE_PROMPT
    assert torch.equal(binding.null_text, components[0].encode(NEGATIVE_PROMPT))
    assert binding.null_text[: len(NEGATIVE_PROMPT)].abs().sum(1).min() > 0
    other = bind_scene(scene, SIZE, *components, negative_prompt="blurred")[1]
    assert not torch.equal(other.null_text, binding.null_text)
    assert torch.equal(other.text, binding.text)
    assert not other.null_text[len(" blurred") + 1 :].any()


def test_bound_pictures(
    bound: tuple[Scene, SceneLayout, Binding], components: tuple[TextEncoder, VideoAutoencoder]
) -> None:
    """Each picture alone: as a clip of one frame, in the order of the references."""
    scene, _, binding = bound
    frames = scene.fitted(SIZE.height, SIZE.width)
    for i, frame in enumerate(frames):
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
        expected = components[1].encode(pixels)[0, :, 0]
        torch.testing.assert_close(binding.references[i], expected, atol=1e-4, rtol=0)
    for a, b in pairwise(binding.references):
        assert float((a - b).abs().max()) > 0.1
    assert max(Counter(r.word for r in scene.references).values()) == 1


def test_a_scene_without_pictures(components: tuple[TextEncoder, VideoAutoencoder]) -> None:
    scene = Scene.from_folder(SAMPLES / "empty-square")
    layout, binding = bind_scene(scene, SIZE, *components)
    assert layout == SceneLayout(video_frames=2, height=4, width=5)
    assert binding.template.shape == (0, TEXT_LEN) and binding.references.shape == (0, 16, 7, 9)

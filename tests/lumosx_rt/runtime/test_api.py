"""The Python interface, as people who know other programs would use it."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lumosx_rt as rt
from lumosx_rt.reference.mechanisms.lumosx.mechanism import LUMOSX
from lumosx_rt.reference.scenes.builtin import builtin_scenes

SIZE = rt.VideoSize(5, 32, 48)
SCENE = next(scene for scene in builtin_scenes() if scene.name == "one-subject")
BRIEF = {"size": SIZE, "steps": 2}


def refusal(call, *args, **options) -> str:
    with pytest.raises(rt.LumosXError) as found:
        call(*args, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.fixture(scope="module")
def made(micro_engine) -> list[rt.Video]:
    return micro_engine.generate(SCENE, seeds=[3, 4], **BRIEF)


# -- kinds of numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seeds",
    [(3, 4), np.array([3, 4], np.uint32), torch.tensor([3, 4]), range(3, 5), [np.int8(3), 4]],
    ids=str,
)
def test_seeds_of_every_kind(micro_engine, made, seeds):
    assert micro_engine.generate(SCENE, seeds=seeds, **BRIEF) == made


def test_settings_of_every_kind(micro_engine, made):
    defaults = micro_engine.manifest.defaults
    kinds = {"steps": np.int64(2), "guidance": torch.tensor(float(defaults["guidance"]))}
    kinds["shift"] = np.float32(defaults["shift"])
    assert micro_engine.generate(SCENE, seeds=[3, 4], size=SIZE, **kinds) == made


WRONG = {
    "seeds": [3, "12", [1.5], [], [1, 1], [-1], [1 << 63], [None], {1: 2}, np.array(3), [True]],
    "steps": [0, -1, 1001, 10**9, 2.5, "12", [12], True, float("nan")],
    "guidance": ["6", float("nan"), float("inf"), 1e30, -1e30, [6], 1j],
    "shift": [0, -1, float("nan"), 1e300, "8"],
    "size": [(5, 32, 48), "5x32x48", 5],
    "negative_prompt": [["a"], 3, b"a", "e" + "\u0301" * 99],
    "schedule": ["fast", 3, ["released"]],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=lambda value: str(value)[:20],
)
def test_anything_else_is_refused_by_its_name_before_work(micro_engine, monkeypatch, name, value):
    def encode(*given):
        raise AssertionError("encoded before it was refused")

    monkeypatch.setitem(vars(micro_engine), "mechanism", replace(LUMOSX, bind=encode))
    said = refusal(micro_engine.generate, SCENE, **BRIEF | {name: value})
    assert name in said


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("num_inference_steps", "here: steps"),
        ("guidance_scale", "here: guidance"),
        ("num_frames", "here: size=rt.VideoSize"),
        ("height", "here: size=rt.VideoSize"),
        ("generator", "here: seeds"),
        ("flow_shift", "here: shift"),
        ("warp", "accepted are"),
    ],
)
def test_names_of_other_programs_get_a_hint(micro_engine, name, here):
    assert here in refusal(micro_engine.generate, SCENE, **{name: 1})


# -- scenes -------------------------------------------------------------------------------------


def test_a_scene_written_in_python_is_the_one_on_disk(micro_engine, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "man.png")
    forms = (
        tmp_path / "man.png", str(tmp_path / "man.png"), Image.fromarray(pixels), pixels,
        torch.from_numpy(pixels).permute(2, 0, 1), (tmp_path / "man.png").read_bytes(),
    )  # fmt: skip
    videos = [
        micro_engine.generate(
            rt.Scene("x", "a man", subjects=[rt.Subject([rt.Reference("man", form)])]), **BRIEF
        )
        for form in forms
    ]
    assert all(video == videos[0] for video in videos)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rt.Scene("x", "a man", subjects=[rt.Reference("man", np.zeros((4, 4), np.uint8))]),
        lambda: rt.Scene("x", "a man", subjects=rt.Subject([])),
        lambda: rt.Scene("x", "a man", objects="hat.png"),
        lambda: rt.Scene("x", "a man", background="park.png"),
        lambda: rt.Scene("x", ["a man"]),
        lambda: rt.Scene(None, "a man"),
        lambda: rt.Subject("face.png"),
        lambda: rt.Subject([rt.Reference("man", "a.png")], face="man"),
        lambda: rt.Subject([rt.Reference("man", "a.png")], face=1),
        lambda: rt.Reference(3, "a.png"),
        lambda: rt.Reference("man", 3),
        lambda: rt.Scene.from_prompt(" "),
        lambda: rt.Scene("x", "a" * (1 << 21)),
        lambda: rt.Scene("x", "a", objects=[rt.Reference("a", "a.png")] * 1001),
    ],
)
def test_what_is_no_scene_is_refused_where_it_is_written(make):
    refusal(make)


def test_a_prompt_as_plain_text(micro_engine, tmp_path, monkeypatch):
    text = "A quiet lake at dawn, and/or a pond"
    (video,) = micro_engine.generate(text, **BRIEF)
    (same,) = micro_engine.generate(rt.Scene(video.name, text), **BRIEF)
    assert video == same and video.name == "A quiet lake at dawn, and_or"
    monkeypatch.chdir(tmp_path)
    SCENE.save("my scene")
    (video,) = micro_engine.generate("my scene", **BRIEF)  # it lies there
    assert video.name == SCENE.name
    Path("scenes").mkdir()
    for nowhere in ("scenes/my scene", "lake", Path("A quiet lake"), str(tmp_path / "a b")):
        assert "does not exist" in refusal(micro_engine.generate, nowhere, **BRIEF)
    for wrong in (None, 3, [SCENE], b"a lake"):
        assert refusal(micro_engine.generate, wrong, **BRIEF).startswith("scene: got")


def test_a_caption_longer_than_the_text_encoder_reads_is_said_to_be_cut(micro_engine, caplog):
    length = micro_engine.config.text_len  # one token a byte, a space before, an end behind
    fits = rt.Scene("x", "b" * (length - 2))
    assert not micro_engine.prepare(fits, **BRIEF).warnings
    long = rt.Scene("x", "b" * (length - 20) + " here it goes on to its end " + "z" * 300)
    (warning,) = micro_engine.prepare(long, **BRIEF).warnings
    tokens = len(long.clean_caption) + 2
    assert f"the caption has {tokens} tokens, the text encoder reads {length}" in warning
    assert "it is cut before 'to its end " in warning
    with caplog.at_level("WARNING", "lumosx_rt"):
        (video,) = micro_engine.generate(long, negative_prompt="n" * 999, **BRIEF)
    assert video.warnings[0] == warning and "the negative prompt has" in video.warnings[1]
    assert [record.message for record in caplog.records] == [f"'x': {w}" for w in video.warnings]


def test_a_word_behind_the_cut_is_an_error(micro_engine):
    caption = "b" * 300 + " hat"
    hat = rt.Reference("hat", np.zeros((8, 8), np.uint8))
    with pytest.raises(rt.LumosXError, match="'hat' spells no tokens of the caption"):
        micro_engine.prepare(rt.Scene("x", caption, objects=[hat]), **BRIEF)


# -- engines ------------------------------------------------------------------------------------


def test_an_engine_forgets_no_path_when_the_program_changes_its_folder(
    micro, micro_bundle, made, tmp_path, monkeypatch
):
    monkeypatch.chdir(micro.folder.parent)
    engine = rt.load(micro.folder.name, components=os.path.relpath(micro_bundle), provider="cpu")
    monkeypatch.chdir(tmp_path)
    assert engine.generate(SCENE, seeds=[3, 4], **BRIEF) == made


def test_a_closed_engine_says_so(micro):
    with rt.load(micro.folder, provider="cpu") as engine:
        request = engine.prepare(SCENE, **BRIEF)
        (*_, state) = engine.sample(request)
        assert repr(engine) == f"Engine '{micro.folder}': lumosx, onnxruntime, fp32"
    assert repr(engine).endswith(", closed")
    engine.close()  # once more is no error
    for call in (
        lambda: engine.generate(SCENE, **BRIEF),
        lambda: engine.prepare(SCENE, **BRIEF),
        lambda: next(engine.sample(request)),
        lambda: engine.decode(request, state.latents),
        lambda: next(engine.stream(SCENE, **BRIEF)),
    ):
        assert "it was closed; load it again" in refusal(call)


def test_reprs_are_for_people(micro_engine):
    request = micro_engine.prepare(SCENE, **BRIEF)
    assert repr(request).startswith("Request 'one-subject': 5 frames of 48 x 32, layout ")
    assert "woman + red hat + blue coat" in repr(SCENE) and len(repr(SCENE)) < 200
    assert repr(SCENE.references[0]) == "Reference('woman', 96 x 96)"


def test_progress_is_called_or_drawn(micro_engine, made, capsys):
    steps = []
    again = micro_engine.generate(
        SCENE, seeds=[3, 4], progress=lambda state: steps.append(state.step), **BRIEF
    )
    assert again == made and steps == [0, 1, 2]
    assert micro_engine.generate(SCENE, seeds=[3, 4], progress=True, **BRIEF) == made
    assert "one-subject" in capsys.readouterr().out


def test_latents_may_be_changed_between_steps(micro_engine, made):
    request = micro_engine.prepare(SCENE, seeds=[3, 4], **BRIEF)
    seen = []

    def look(state):
        seen.append((state.step, tuple(state.latents.shape)))
        return state.latents

    (*_, last) = micro_engine.sample(request, look)
    assert micro_engine.decode(request, last.latents) == made
    assert seen == [(step, (2, 16, 2, 4, 6)) for step in range(3)]

    def noise(state):  # the second seed's noise for both
        return state.latents[[1, 1]] if state.step == 0 else state.latents

    (*_, last) = micro_engine.sample(request, noise)
    assert torch.equal(last.latents[0], last.latents[1])
    a, b = micro_engine.decode(request, last.latents)
    assert np.array_equal(a.frames, made[1].frames) and np.array_equal(b.frames, made[1].frames)

"""Scenes: what can be wrong with one, and the samples."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.reference.world.scene_lists import BINDING

SAMPLES = Path(__file__).parents[3] / "samples"


def folder(root: Path, files: dict[str, str | int | None]) -> Path:
    """A prompt folder: a text is written, a number is a grey picture, None an empty folder."""
    for name, content in files.items():
        path = root / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif content is not None:
            Image.new("RGB", (6, 4), (content,) * 3).save(path, "PNG")
    return root


def grey(word: str, value: int = 9) -> Reference:
    return Reference(word, Image.new("RGB", (6, 4), (value,) * 3))


# -- problems -----------------------------------------------------------------------------------


def scene_of(caption: str, *people: tuple[str, ...], objects: tuple[str, ...] = ()) -> Scene:
    subjects = tuple(Subject(tuple(map(grey, names))) for names in people)
    return Scene("x", caption, None, tuple(map(grey, objects)), subjects)


def test_all_errors_come_at_once(tmp_path):
    root = folder(
        tmp_path,
        {
            "caption.txt": "id;A Tall man, an old woman.",
            "objects/lamp.png": "text",
            "objects/b.png": 1,
            "subjects/1/face_tall man.png": 2,
            "subjects/1/old_woman.png": 2,
            "subjects/2/face.png": 3,
            "subjects/2/a.png": 4,
            "subjects/2/b.png": 5,
            "subjects/2/c.png": 6,
        },
    )
    with pytest.raises(LumosXError) as refusal:
        Scene.from_folder(root).check(max_references=8, max_members=3)
    text = str(refusal.value)
    assert text.startswith("scene 'id': ")
    for part in (
        "subject 2 has 4 pictures, accepted are at most 3",
        "'lamp' is not in the caption",
        "lamp.png' cannot be read",
        "'tall man' is not in the caption, so nothing would bind it; 'Tall man' is, and case",
        "'old_woman' is not in the caption, so nothing would bind it; 'old woman' is; file names",
        "face.png) has an empty word",
    ):
        assert part in text, part
    assert "pictures, accepted are at most 8" not in text


def test_too_many_references():
    scene = scene_of("a b c", ("a", "b"), objects=("c",))
    assert scene.check(max_references=3, max_members=2) == []
    with pytest.raises(LumosXError, match="3 pictures, accepted are at most 2"):
        scene.check(max_references=2)


def test_a_flood_of_pictures_is_not_opened(monkeypatch):
    def opened(*_: object, **__: object) -> None:
        raise LumosXError("opened")

    monkeypatch.setattr("lumosx_rt.reference.scenes.scene.picture_of", opened)
    scene = scene_of("a b c", ("a", "b"), objects=("c",))
    assert len(scene.problems(max_references=3)[0]) == 3
    errors, _ = scene.problems(max_references=2)
    assert len(errors) == 1 and "opened" not in errors[0]


def test_no_caption():
    errors, _ = scene_of(" \n", ("man",)).problems()
    assert len(errors) == 1 and "no caption" in errors[0]


def test_words_and_captions_are_cleaned_alike():
    # broken encoding, HTML entities (twice), white space
    written, clean = "caf\u00c3\u00a9\n &amp;amp;  bar", "caf\u00e9 & bar"
    for caption in (written, clean):
        for word in (written, clean):
            assert scene_of(f"A {caption}.", (word,)).problems() == ([], [])
    errors, _ = scene_of(f"A {clean}.", (written, clean)).problems()
    assert errors == [f"subject 1: 2 pictures for the word '{clean}'; keep one of them"]


def test_words_inside_longer_words_are_warned_of():
    errors, warnings = scene_of("A woman.", ("man",)).problems()
    assert errors == [] and len(warnings) == 1 and "only inside a longer word" in warnings[0]
    assert scene_of("\u4e00\u4e2a\u7537\u4eba\u8d70\u8def", ("\u7537\u4eba",)).problems() == (
        [],
        [],
    )


def test_words_on_several_people():
    caption = "A man, a young woman, a woman and a hat."
    both = scene_of(caption, ("man", "hat"), ("woman", "hat")).problems()
    assert both[0] == [] and len(both[1]) == 1
    assert "every subject has the word 'hat'" in both[1][0]
    nested = scene_of(caption, ("young woman",), ("woman",)).problems()
    assert nested[0] == [] and len(nested[1]) == 1
    assert (
        "subject 2: its word 'woman' is a part of another subject's 'young woman'" in nested[1][0]
    )
    # two of three, one person alone, a person and an object: nothing cancels
    for scene in (
        scene_of(caption, ("man", "hat"), ("woman", "hat"), ("young",)),
        scene_of(caption, ("man", "hat")),
        scene_of(caption, ("man",), ("hat",), objects=("man",)),
    ):
        assert not any("every subject" in warning for warning in scene.problems()[1])


def test_pictures_in_memory_are_checked():
    bad = Scene("x", "a man", None, (Reference("man", Image.new("F", (3, 3))),))
    with pytest.raises(LumosXError, match="object 1: image: mode 'F'"):
        bad.check()


def test_scenes_that_cannot_be():
    with pytest.raises(LumosXError, match="does not name a file.*such as '_x'"):
        Scene("../x", "a")
    with pytest.raises(LumosXError, match="face 2 is not one of its 1 pictures"):
        Subject((grey("a"),), face=2)
    with pytest.raises(LumosXError, match="'composite' and 'drop'"):
        Scene("x", "a", alpha="keep")  # type: ignore[arg-type]


# -- the samples, and what a scene costs to import ----------------------------------------------


def test_drawn_samples_are_held_out_of_training_and_benchmark():
    for path in sorted((SAMPLES / "drawn").iterdir()):
        scene = Scene.load(path)
        assert scene.problems()[0] == [] and scene.name.startswith("held-out")
        assert scene.name not in {told.name for told in BINDING.stories}
        assert (path / "video.mp4").is_file()


@pytest.mark.parametrize(
    ("name", "lone", "sizes"),
    [
        ("two-friends", 2, (3, 3)),
        ("one-face", 0, (1,)),
        ("market-trio", 3, (2, 3, 4)),
        ("empty-square", 0, ()),
    ],
)
def test_samples_are_scenes_without_a_fault(name, lone, sizes):
    scene = Scene.load(SAMPLES / name)
    assert scene.problems() == ([], [])
    assert (scene.name, scene.lone, scene.subject_sizes) == (name, lone, sizes)
    assert all(subject.face == 0 for subject in scene.subjects)
    assert len(scene.caption.encode()) < 240
    # not white on white: every picture shows something
    ink = (scene.fitted(64, 144) < 200).any(-1).mean((1, 2))
    assert (ink > 0.04).all(), ink


def test_samples_are_what_their_programs_draw(tmp_path):
    subprocess.run([sys.executable, SAMPLES / "draw.py", tmp_path], check=True)
    subprocess.run([sys.executable, SAMPLES / "drawn.py", tmp_path / "drawn"], check=True)
    drawn = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.suffix != ".mp4")
    drawn = [path for path in drawn if path.suffix]
    kept = [p.relative_to(SAMPLES) for p in SAMPLES.rglob("*") if p.suffix in (".png", ".txt")]
    assert drawn == sorted(kept)
    for path in drawn:
        if path.suffix == ".txt":
            assert (SAMPLES / path).read_text() == (tmp_path / path).read_text()
            continue
        with Image.open(SAMPLES / path) as one, Image.open(tmp_path / path) as other:
            assert one.mode == other.mode
            assert np.abs(np.array(one).astype(int) - np.array(other)).mean() < 1, path


def test_a_scene_imports_nothing_heavy():
    program = "import sys, lumosx_rt.reference.scenes.scene; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "lumosx_rt.reference.scenes.scene" in modules
    assert not {"torch", "av", "diffusers", "transformers", "ftfy"} & set(modules)

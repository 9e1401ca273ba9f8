"""Scenes on disk: prompt folders, as released and in a fixed order, and scene.toml."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import layout_of
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from tests.helpers.prompt_folder import folder

GOLDEN = Path(os.environ.get("LUMOSX_GOLDEN_DIR", Path(__file__).parents[2] / "golden"))
SAMPLES = Path(__file__).parents[3] / "samples"


def grey(word: str, value: int = 9) -> Reference:
    return Reference(word, Image.new("RGB", (6, 4), (value,) * 3))


def words(scene: Scene) -> tuple[object, ...]:
    background = scene.background and scene.background.word
    people = [[r.word for r in subject.references] for subject in scene.subjects]
    return background, [r.word for r in scene.objects], people


def greys(scene: Scene) -> list[int]:
    """Which pictures it holds, by their grey values."""
    return [int(frame[2, 3, 0]) for frame in scene.fitted(4, 6)]


# -- prompt folders -----------------------------------------------------------------------------


def test_the_released_reader(tmp_path):
    case = json.loads((GOLDEN / "dir_reader.json").read_text())
    root = folder(tmp_path / "x", {"caption.txt": "id;text", **dict.fromkeys(case["files"], 5)})
    orders = {"sorted": sorted, "reversed": lambda names: sorted(names, reverse=True)}
    assert case["trees"]
    for name, tree in case["trees"].items():
        script, order = name.split("_")
        scene = Scene.from_folder(root, order=orders[order], script=script)
        labels = [label for label, content in tree if not isinstance(content[0], list)]
        people = [
            [label for label, _ in content] for _, content in tree if isinstance(content[0], list)
        ]
        background, objects, subjects = words(scene)
        assert ([background] if background else []) + objects == labels, name
        assert subjects == people, name


EVERYTHING: dict[str, str | int | None] = {
    "caption.txt": "two-of-them;A tall man and an old woman.",
    "background/park.v2.png": 1,
    "objects/lamp.b.png": 3,
    "objects/crate.png": 2,
    "objects/.DS_Store": "hidden",
    "subjects/10/face_woman.png": 7,
    "subjects/2/red.hat.png": 6,
    "subjects/2/coat.png": 5,
    "subjects/2/face_tall man.png": 4,
    "subjects/2/fullfullbody_man.png": 8,
}


def test_stable_order(tmp_path):
    scene = Scene.from_folder(folder(tmp_path, EVERYTHING))
    assert (scene.name, scene.caption) == ("two-of-them", "A tall man and an old woman.")
    # less the suffix of a picture; after `face_` for a face; 2 before 10
    expected = ("park.v2", ["crate", "lamp.b"], [["tall man", "coat", "red.hat"], ["woman"]])
    assert words(scene) == expected
    assert greys(scene) == [1, 2, 3, 4, 5, 6, 7]
    assert [subject.face for subject in scene.subjects] == [0, 0]
    assert (scene.lone, scene.subject_sizes) == (3, (3, 1))
    assert [r.word for r in scene.references] == [
        expected[0],
        *expected[1],
        *expected[2][0],
        "woman",
    ]


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("objects/St. Anna vase.png", "St. Anna vase"),
        ("objects/U.S. flag.JPG", "U.S. flag"),
        ("objects/crate v1.2", "crate v1.2"),
        ("objects/cup.heic", "cup"),  # whose format is refused, not its word
        ("background/no. 5.webp", "no. 5"),
        ("subjects/1/Dr. Who's scarf.png", "Dr. Who's scarf"),
        ("subjects/1/typeface poster.png", "typeface poster"),
        ("subjects/1/clock_face.png", "clock_face"),
        ("subjects/1/surface_tablet.png", "surface_tablet"),
        ("subjects/1/帽子.子.png", "帽子.子"),
    ],
)
def test_a_word_is_its_file_name_less_the_suffix_of_a_picture(tmp_path, file, word):
    root = folder(tmp_path, {"caption.txt": f"x;a man, {word}", "subjects/1/face_man.png": 1})
    folder(root, {file: 2})
    scene = Scene.load(root)
    assert word in [reference.word for reference in scene.references]
    assert [subject.face for subject in scene.subjects] == [0]
    released = Scene.load(root, order="listing")
    cut = sorted(r.word for r in released.references) != sorted(r.word for r in scene.references)
    said = [note for note in scene.notes if file in note and "released scripts" in note]
    assert len(said) == cut


@pytest.mark.parametrize(
    "name",
    ["Thumbs.db", "desktop.ini", "Icon\r", "~$notes.docx", "._face_man.png", ".DS_Store"],
)
def test_files_of_the_system_are_no_pictures(tmp_path, name):
    files = {"caption.txt": "x;a man in a park", "subjects/1/face_man.png": 1}
    root = folder(tmp_path, {**files, "background/park.png": 2})
    for part in ("background", "objects", "subjects/1", "subjects"):
        folder(root, {f"{part}/{name}": "x"})
    for part in ("objects/@eaDir", "subjects/__MACOSX", "subjects/@eaDir"):
        folder(root, {f"{part}/x.png": "x"})
    assert Scene.load(root).problems() == ([], [])
    folder(root, {"objects/notes.txt": "x"})
    assert len(Scene.load(root).problems()[0]) == 2  # not in the caption, and no picture


def test_a_scene_with_a_key_of_many_parts_is_refused_at_once(tmp_path):
    """Python's parser takes time that grows with the square of the parts: minutes for 200 KB."""
    for text in (".".join(["a"] * 90_000) + " = 1", "[" + '"a".' * 40_000 + "b]"):
        (tmp_path / "scene.toml").write_text(text)
        with pytest.raises(LumosXError, match="a key of more than 16 parts"):
            Scene.load(tmp_path)


def test_an_orientation_survives_saving(tmp_path):
    pixels = np.zeros((8, 4, 3), np.uint8)
    pixels[:4] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    picture = Image.open(tmp_path / "phone.jpg")
    scene = Scene("x", "a man", subjects=[Subject([Reference("man", picture)])])
    again = Scene.load(scene.save(tmp_path / "saved"))
    assert np.array_equal(again.fitted(8, 8), scene.fitted(8, 8))


def test_layout_of_a_scene(tmp_path):
    layout = layout_of(Scene.from_folder(folder(tmp_path, EVERYTHING)), (5, 4, 9))
    assert layout.key == "5x4x9+3+3.1"


def test_listing_is_the_file_systems(tmp_path, monkeypatch):
    listed = {
        "background": ["park.png"],
        "objects": ["b.png", "c.png", "a.png"],
        "subjects": ["2", "10", "1"],
        "1": ["hat.png", "face_x.png"],
        "2": ["face_y.png"],
        "10": ["coat.png"],
    }
    files: dict[str, str | int | None] = {"caption.txt": "x"}
    for part in ("background", "objects"):
        files |= {f"{part}/{name}": 5 for name in listed[part]}
    for part in listed["subjects"]:
        files |= {f"subjects/{part}/{name}": 5 for name in listed[part]}
    root = folder(tmp_path / "x", files)
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda p: listed.get(Path(p).name) or real(p))
    scene = Scene.from_folder(root, order="listing")
    assert words(scene) == ("park", ["b", "c", "a"], [["y"], ["coat"], ["hat", "x"]])
    assert [subject.face for subject in scene.subjects] == [0, None, 1]


def test_equal_words_overwrite_as_released(tmp_path):
    files: dict[str, str | int | None] = {
        "caption.txt": "x",
        "background/park.1.png": 1,
        "objects/a.1.png": 2,
        "objects/a.2.png": 3,
        "objects/b.png": 4,
        "objects/park.2.png": 5,
        "subjects/1/face_man.png": 6,
        "subjects/1/hat.png": 7,
        "subjects/1/man.png": 8,
    }
    scene = Scene.from_folder(folder(tmp_path, files), order=sorted)
    assert words(scene) == ("park", ["a", "b"], [["man", "hat"]])
    # the later picture, in the place of the earlier one
    assert greys(scene) == [5, 3, 4, 8, 7]
    assert len(Scene.from_folder(tmp_path).references) == 8
    errors, _ = Scene.from_folder(tmp_path).problems()
    doubled = [error for error in errors if "pictures for the word" in error]
    assert doubled == [
        "subject 1: 2 pictures for the word 'man'; keep one of them",
    ]


def test_face_script(tmp_path):
    root = folder(tmp_path, EVERYTHING)
    assert words(Scene.from_folder(root, script="face")) == (None, [], [["tall man"], ["woman"]])
    folder(root, {"subjects/3/coat.png": 9})
    errors, _ = Scene.from_folder(root, script="face").problems()
    assert any("subjects/3 has no face" in error for error in errors)


@pytest.mark.parametrize(
    ("text", "name", "caption"),
    [
        ("\ufeffid; A man ;walks\n", "id", "A man ;walks"),
        ("A man walks.\n", "the folder", "A man walks."),
        ('id;{"a": 1} |0|', "id", '{"a": 1} |0|'),
        ("../../etc/x;A man", "_.._etc_x", "A man"),
        ("", "the folder", ""),
    ],
)
def test_captions(tmp_path, text, name, caption):
    scene = Scene.from_folder(folder(tmp_path / "the folder", {"caption.txt": text}))
    assert (scene.name, scene.caption) == (name, caption)
    assert "/" not in scene.name


def test_a_semicolon_in_a_sentence_is_pointed_out(tmp_path):
    root = folder(tmp_path, {"caption.txt": "A man walks; he wears a hat."})
    _, warnings = Scene.from_folder(root).problems()
    assert len(warnings) == 1 and "'A man walks'" in warnings[0]
    assert Scene.from_folder(folder(tmp_path, {"caption.txt": "id;A man."})).problems() == ([], [])


def test_folders_that_are_none(tmp_path):
    with pytest.raises(LumosXError, match="does not exist.*caption.txt"):
        Scene.from_folder(tmp_path / "absent")
    with pytest.raises(LumosXError, match="it is empty.*caption.txt"):
        Scene.load(tmp_path)
    folder(tmp_path, {"a/caption.txt": "x", "b/notes.md": "x", "readme": "x"})
    with pytest.raises(LumosXError, match="it holds a, b, readme.*give one of them: a$"):
        Scene.load(tmp_path)
    with pytest.raises(LumosXError, match="is a file"):
        Scene.load(tmp_path / "readme")


def test_folders_that_are_odd(tmp_path):
    files: dict[str, str | int | None] = {
        "caption.txt": "id;A lamp and a park.",
        "background/park.png": 1,
        "background/sea.png": 2,
        "objects": "a file",
        "subjects/1": None,
        "subjects/stray.png": 3,
    }
    errors, _ = Scene.from_folder(folder(tmp_path, files)).problems()
    expected = ["background/ holds 2 files (park.png, sea.png)", "objects is a file"]
    expected += ["subjects/stray.png is not a folder", "subject 1 has no picture"]
    assert len(errors) == len(expected)
    assert all(part in error for part, error in zip(expected, errors, strict=True))


def test_links_within_the_folder_are_followed(tmp_path):
    root = folder(tmp_path, {"caption.txt": "x", "pictures/1.png": 7, "objects": None})
    (root / "objects/lamp.png").symlink_to("../pictures/1.png")
    assert greys(Scene.from_folder(root)) == [7]


def test_unknown_orders_and_scripts(tmp_path):
    root = folder(tmp_path, {"caption.txt": "x"})
    with pytest.raises(LumosXError, match="order must be 'stable'.* got 'random'"):
        Scene.from_folder(root, order="random")  # type: ignore[arg-type]
    with pytest.raises(LumosXError, match="'face'.* got 'both'"):
        Scene.from_folder(root, script="both")  # type: ignore[arg-type]


# -- scene.toml and saving ----------------------------------------------------------------------


TOML = """
name = "picnic"
caption = "A man with a hat and a woman in a park."
alpha = "drop"
exif = false
background = { word = "park", image = "park.png" }
objects = [{ word = "hat", image = "things/h.png" }]

[[subjects]]
references = [
  { word = "hat", image = "things/h.png" },
  { word = "man", image = "m.png", face = true },
]

[[subjects]]
references = [{ word = "woman", image = "w.png", face = false }]
"""


def test_toml(tmp_path):
    pictures = {"park.png": 1, "things/h.png": 2, "m.png": 3, "w.png": 4}
    root = folder(tmp_path / "x", {"scene.toml": TOML, **pictures})
    scene = Scene.load(root)
    assert scene == Scene.from_toml(root / "scene.toml") == Scene.load(root / "scene.toml")
    assert (scene.name, scene.alpha, scene.exif) == ("picnic", "drop", False)
    assert words(scene) == ("park", ["hat"], [["hat", "man"], ["woman"]])
    assert [subject.face for subject in scene.subjects] == [1, None]
    assert greys(scene) == [1, 2, 2, 3, 4]
    with pytest.raises(LumosXError, match="states its own order"):
        Scene.load(root, order="listing")


def test_toml_names_all_that_is_wrong(tmp_path):
    content = """
    caption = 3
    colour = "red"
    background = { word = "park" }
    objects = ["lamp"]
    alpha = "keep"
    [[subjects]]
    references = [{ word = true, image = "a.png", face = 1 }]
    """
    folder(tmp_path, {"scene.toml": content})
    with pytest.raises(LumosXError) as refusal:
        Scene.load(tmp_path)
    for part in (
        "unknown entry 'colour'",
        "caption must be a string, got 3",
        "background has no image",
        "object 1 must be a table with word, image, got 'lamp'",
        "subject 1, picture 1: word must be a string",
        "subject 1, picture 1: face must be true or false, got 1",
        "alpha: got 'keep'",
    ):
        assert part in str(refusal.value), part


def test_a_plain_scene_is_saved_as_a_prompt_folder(tmp_path):
    scene = Scene.load(SAMPLES / "two-friends")
    target = scene.save(tmp_path / "copy")
    assert not (target / "scene.toml").exists()
    copy = Scene.from_folder(target)
    assert (copy.name, copy.caption) == (scene.name, scene.caption)
    assert words(copy) == words(scene)
    assert np.array_equal(copy.fitted(16, 36), scene.fitted(16, 36))
    with pytest.raises(LumosXError, match="exists already"):
        scene.save(target)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


text = st.text(st.characters(codec="utf-8"), max_size=12)
awkward = st.sampled_from(
    ["face", "a.b", "../x", "hat", "hat", "x/y", ".hid", "fullfullbody", "CON", "\x7f"]
)
members = st.lists(awkward | text, min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(text, st.none() | text, members, st.lists(st.tuples(members, st.booleans()), max_size=2))
def test_whatever_is_saved_is_loaded(tmp_path_factory, caption, background, objects, people):
    values = iter(range(100))

    def one(word: str) -> Reference:
        return grey(word, next(values))

    scene = Scene(
        "name",
        caption,
        None if background is None else one(background),
        tuple(map(one, objects)),
        tuple(
            Subject(tuple(map(one, names)), len(names) - 1 if last else None)
            for names, last in people
        ),
    )
    target = scene.save(tmp_path_factory.mktemp("scene") / "x")
    copy = Scene.load(target)
    assert copy.caption == scene.caption and words(copy) == words(scene)
    assert [g.face for g in copy.subjects] == [g.face for g in scene.subjects]
    assert greys(copy) == greys(scene) == list(range(len(scene.references)))
    files = [path for path in target.rglob("*") if path.is_file()]
    assert all(path.resolve().is_relative_to(target.resolve()) for path in files)


def test_a_failed_save_leaves_nothing(tmp_path):
    scene = Scene("x", "a man", None, (Reference("man", tmp_path / "absent.png"),))
    with pytest.raises(LumosXError, match=r"absent\.png"):
        scene.save(tmp_path / "target")
    assert list(tmp_path.iterdir()) == []

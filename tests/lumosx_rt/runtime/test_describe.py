"""What things are said to be: engines, scenes, checkpoints, layout keys, and this machine."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import read_manifest
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.runtime import doctor
from lumosx_rt.runtime.describe import as_text, describe, for_people, occurrences

SIZE = rt.VideoSize(9, 64, 96)  # 3 x 4 x 6 tokens
NONE, ONE, TWO = builtin_scenes()


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)


# -- engines ------------------------------------------------------------------------------------


def test_an_engine_says_what_its_manifest_says(drawn):
    facts = describe(drawn.folder, SIZE)
    manifest = json.loads((drawn.folder / "manifest.json").read_text(encoding="utf-8"))
    assert facts["kind"] == "engine"
    for name in ("backend", "precision", "model", "checkpoint", "layouts", "defaults", "versions"):
        assert facts[name] == manifest[name]
    content = [p for p in drawn.folder.rglob("*") if p.is_file()]
    content = [p for p in content if p.name not in ("manifest.json", "report.json", "report.md")]
    assert facts["files"] == len(content)
    assert facts["bytes"] == sum(p.stat().st_size for p in content)
    assert facts["operators"]["MatMul"] > 10


def test_an_engine_says_whether_it_was_verified(micro, copied):
    folder = copied(micro.folder)
    report = folder / "report.json"
    entries = {"steps": 1, "guidance": 1.0, "gate": 1.0, "scenes": []}
    for passed in (True, False):
        report.write_text(json.dumps({"verify": entries | {"passed": passed}}))
        assert describe(folder, SIZE)["verified"] is passed
    for text in ('{"verify": 3}', '{"verify": {}}', '{"build": [1]}', "[1]", "{", ""):
        report.write_text(text)
        facts = describe(folder, SIZE)
        assert facts["verified"] is None and facts["operators"] == {}
    report.unlink()
    assert describe(folder, SIZE)["verified"] is None


def test_a_damaged_engine_is_an_error(micro, copied):
    folder = copied(micro.folder)
    (folder / "transformer" / "model.onnx.data").write_bytes(b"")
    (folder / "extra").write_bytes(b"")
    text = refusal(describe, folder, SIZE)
    assert "model.onnx.data" in text and "extra is not listed" in text


def test_an_engine_has_no_one_layout_to_draw(micro, tmp_path):
    text = refusal(describe, micro.folder, SIZE, tmp_path / "layout.png")
    assert "scene" in text and not list(tmp_path.iterdir())


# -- scenes -------------------------------------------------------------------------------------


def test_a_scene_says_its_words_and_its_layout(tmp_path):
    facts = describe(TWO.save(tmp_path / "scene"), SIZE)
    assert facts["kind"] == "scene" and facts["name"] == "two-subjects"
    assert facts["layout"] == "3x4x6+1+3.2" and facts["references"] == 6
    assert facts["tokens"] == 9 * 24 and facts["video_tokens"] == 72 and facts["frame_tokens"] == 24
    assert [list(group) for group in facts["groups"]] == [[3, 4], [4, 7], [7, 9]]
    assert [list(map(list, pair)) for pair in facts["attention_ranges"]] == [
        [[0, 72], [0, 216]],
        [[72, 96], [72, 96]],
        [[96, 168], [96, 168]],
        [[168, 216], [168, 216]],
    ]
    assert facts["caption"] == TWO.caption and facts["words"][0] == "garden"
    for word, spans in zip(facts["words"], facts["spans"], strict=True):
        assert spans and all(facts["caption"][a:b] == word for a, b in spans)
    assert facts["errors"] == [] and facts["warnings"] == []


def test_a_scene_for_an_engine_says_what_is_read_of_its_caption(micro, run, tmp_path):
    length = read_manifest(micro.folder).model["text_len"]
    scene = Scene("x", "b" * (length - 5) + " and its end is lost")
    folder = scene.save(tmp_path / "scene")
    assert "caption_tokens" not in describe(folder, SIZE)
    facts = describe(folder, SIZE, engine=micro.folder)
    tokens = len(scene.caption) + 2  # one a byte, a space before, an end behind
    assert facts["caption_tokens"] == {"all": tokens, "read": length}
    assert any(f"the caption has {tokens} tokens" in warning for warning in facts["warnings"])
    said = run("inspect", folder, "--engine", micro.folder).stdout
    assert "cut before 'and its end is lost'" in said


def test_all_errors_of_a_scene_are_facts(tmp_path):
    folder = TWO.save(tmp_path / "scene")
    (folder / "scene.toml").unlink(missing_ok=True)
    (folder / "subjects" / "1" / "face_woman.png").rename(
        folder / "subjects" / "1" / "face_cat.png"
    )
    (folder / "subjects" / "2" / "face_man.png").write_bytes(b"no picture")
    (folder / "subjects" / "3").mkdir()
    facts = describe(folder, SIZE)
    text = "\n".join(facts["errors"])
    assert "'cat'" in text and "face_man.png" in text and "subject 3" in text
    assert len(facts["errors"]) == 3


def test_a_scene_file_and_the_folder_it_lies_in_are_the_same(tmp_path):
    folder = TWO.save(tmp_path / "scene")
    (folder / "scene.toml").write_text(
        'name = "written"\ncaption = "A man."\n'
        '[[subjects]]\nreferences = [{word = "man", image = "subjects/2/face_man.png"}]\n'
    )
    facts = describe(folder / "scene.toml", SIZE)
    assert facts == describe(folder, SIZE)
    assert facts["name"] == "written" and facts["layout"] == "3x4x6+0+1"


@pytest.mark.parametrize("what", ["scene", "key"])
def test_a_layout_is_drawn_whole_or_not_at_all(tmp_path, monkeypatch, what):
    path = TWO.save(tmp_path / "scene") if what == "scene" else Path("3x4x6+1+3.2")
    picture = tmp_path / "deep" / "layout.png"
    describe(path, SIZE, picture)
    image = Image.open(picture)
    assert image.format == "PNG" and min(image.size) > 100
    assert len(image.convert("RGB").getcolors(1 << 20)) > 5
    before = picture.read_bytes()

    def interrupted(self, file, **options):
        with open(file, "wb") as out:
            out.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        describe(path, SIZE, picture)
    assert picture.read_bytes() == before
    assert [p.name for p in picture.parent.iterdir()] == ["layout.png"]


# -- layout keys and checkpoints ----------------------------------------------------------------


def test_a_layout_key_is_read(tmp_path, monkeypatch):
    facts = describe(Path("21x30x52+1+4.4"), SIZE)
    assert facts["kind"] == "layout" and facts["layout"] == "21x30x52+1+4.4"
    assert (facts["references"], facts["frame_tokens"]) == (9, 1560)
    assert (facts["video_tokens"], facts["tokens"]) == (32760, 46800)
    monkeypatch.chdir(tmp_path)
    for wrong in ("21x30+1+4", "1x1x5000+0+-", "a+b", "0x1x1+0+-", "1x1x1+0+1+colour"):
        assert "layout" in refusal(describe, Path(wrong), SIZE)


@pytest.mark.parametrize("what", ["bundle", "without vae", "transformer", "file"])
def test_a_checkpoint_says_its_parts(micro_bundle, copied, what):
    path = copied(micro_bundle)
    weights = path / "transformer" / "diffusion_pytorch_model.safetensors"
    sizes = {
        "transformer": weights.stat().st_size,
        "text_encoder": (path / "text_encoder" / "model.safetensors").stat().st_size,
        "vae": (path / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size,
        "tokenizer": sum(f.stat().st_size for f in (path / "tokenizer").iterdir()),
    }
    if what == "without vae":
        shutil.rmtree(path / "vae")
        del sizes["vae"]
    elif what != "bundle":
        path = weights if what == "file" else weights.parent
        sizes = {"transformer": sizes["transformer"]}
    facts = describe(path, SIZE)
    assert facts["kind"] == "checkpoint"
    assert facts["layout"] == ("diffusers" if len(sizes) > 1 else "transformer")
    assert {name: part["bytes"] for name, part in facts["parts"].items()} == sizes
    assert not any(part["path"].startswith("/") for part in facts["parts"].values())


def test_what_is_nothing_of_all_this_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("# notes")
    for path in (tmp_path, tmp_path / "notes.md", tmp_path / "nowhere"):
        text = refusal(describe, path, SIZE)
        assert str(path) in text and "manifest.json" in text and "caption.txt" in text


# -- words --------------------------------------------------------------------------------------


@given(st.text("ab ", max_size=4), st.text("ab ", max_size=20))
def test_every_place_of_a_word_is_found(word, text):
    expected = []
    if word:
        expected = [m.start() for m in re.finditer(f"(?={re.escape(word)})", text)]
    assert occurrences(word, text) == [(start, start + len(word)) for start in expected]


def test_facts_become_lines():
    facts = {
        "a_b": 1,
        "nothing": None,
        "empty": [],
        "none_at_all": {},
        "words": ["x", "y"],
        "table": {"k": 2, "inner": {"z": "w"}},
        "pairs": [[1, 2]],
    }
    assert as_text(facts).splitlines() == [
        "a b: 1",
        "nothing: None",
        "words:",
        "  - x",
        "  - y",
        "table:",
        "  k: 2",
        "  inner:",
        "    z: w",
        "pairs: [[1, 2]]",
    ]


# -- doctor -------------------------------------------------------------------------------------


def test_the_doctor_describes_this_machine(shared):
    import os

    import av
    import onnxruntime
    import torch

    facts = doctor.examine()
    assert facts["problems"] == []
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"]["onnxruntime"] == onnxruntime.__version__
    assert facts["packages"]["av"] == av.__version__
    assert "CPUExecutionProvider" in facts["onnxruntime_providers"]
    assert (facts["torch_device"] == "cpu") is not torch.cuda.is_available()
    assert facts["cpus"] == len(os.sched_getaffinity(0)) and facts["memory_bytes"] > 1 << 28
    assert facts["cache"] == str(shared / "cache") and "264" in facts["h264_encoder"]
    assert facts["text_cleaning"] == "a&b c"


def test_the_doctor_names_what_is_broken(monkeypatch):
    def broken():
        raise OSError("libx264 is missing\nand more")

    monkeypatch.setitem(doctor.CHECKS, "h264_encoder", broken)
    monkeypatch.setitem(doctor.CHECKS, "other", lambda: [][0])
    facts = doctor.examine()
    assert facts["h264_encoder"] is None and facts["other"] is None
    assert len(facts["problems"]) == 2
    assert "h264_encoder" in facts["problems"][0] and "libx264 is missing" in facts["problems"][0]
    assert "and more" not in facts["problems"][0]


# -- for people ---------------------------------------------------------------------------------


def test_people_are_told_words_and_no_pairs_of_numbers(drawn, tmp_path):
    for scene in (NONE, ONE, TWO):
        scene.save(tmp_path / scene.name)
        facts = describe(tmp_path / scene.name, SIZE)
        text = as_text(for_people(facts))
        assert "(" not in text.replace(facts["caption"], "") and "[" not in text
        for word in facts["words"]:
            assert f"'{word}': in the caption from character" in text
        assert "spans" in facts  # programs get them
    text = as_text(for_people(describe(drawn.folder, SIZE)))
    assert "references: 0 to 16" in text and "verified: not compared with" in text
    layout = for_people(describe(Path("3x4x6+1+2.2"), SIZE))
    assert layout["groups"] == ["reference 1", "references 2 to 3", "references 4 to 5"]
    assert "tokens 72 to 95 see tokens 72 to 95" in layout["attention_ranges"]


@pytest.mark.parametrize("name", ["x.txt", "x", "x.jpg", ".png"])
def test_a_layout_is_drawn_as_png_only(name, tmp_path):
    told = refusal(describe, Path("3x4x6+1+2.2"), SIZE, tmp_path / name)
    assert ".png" in told and not list(tmp_path.iterdir())

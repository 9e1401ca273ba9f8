"""What a request depends on is decided once: pictures, texts, layout, branches, memory plan."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lumosx_rt as rt
from lumosx_rt.reference.encoders.tiled_decode import halo
from lumosx_rt.reference.mechanisms.lumosx.mechanism import LUMOSX
from lumosx_rt.reference.sampling.request import ValidRequest
from lumosx_rt.reference.scenes import images, scene
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.runtime import memory
from lumosx_rt.runtime.devices import encoders as engines
from lumosx_rt.runtime.folder import generate_all

SIZE = rt.VideoSize(5, 32, 48)
WORDS = ("garden", "kite", "woman", "red hat", "man", "green scarf")
CAPTION = "In a garden a woman with a red hat flies a kite with a man in a green scarf."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prompt folder with six pictures."""
    draw = np.random.default_rng(0)

    def picture(word: str) -> Reference:
        pixels = draw.integers(0, 256, (40, 56, 3), np.uint8)
        return Reference(word, Image.fromarray(pixels))

    garden, kite, *people = map(picture, WORDS)
    subjects = (Subject(tuple(people[:2])), Subject(tuple(people[2:])))
    return Scene("once", CAPTION, garden, (kite,), subjects).save(tmp_path / "once")


@pytest.fixture
def counts(monkeypatch) -> Counter[str]:
    """How often each thing is done."""
    found: Counter[str] = Counter()

    def counted(name: str, module, attribute: str, key=lambda *args: "") -> None:
        right = getattr(module, attribute)

        def call(*args, **options):
            found[f"{name}{key(*args)}"] += 1
            return right(*args, **options)

        monkeypatch.setattr(module, attribute, call)

    def tokenized(_, text: str) -> str:
        return f": {text}"

    counted("decoded", images, "load_image", lambda path: f": {Path(path).name}")
    counted("cleaned", scene, "clean_text", lambda text: f": {text}")
    counted("tokenized", engines.TextEncoder, "prompt", tokenized)
    counted("planned", memory, "plan")
    return found


@pytest.mark.parametrize("limit", [None, 1 << 40], ids=["no limit", "--max-memory"])
def test_everything_is_done_once(micro_engine, folder, tmp_path, counts, limit) -> None:
    engine = rt.Engine(
        micro_engine.folder, micro_engine.manifest, micro_engine.backend, max_memory=limit
    )
    layouts: list[object] = []

    def layout(*args):
        layouts.append(LUMOSX.layout(*args))
        return layouts[-1]

    engine.mechanism = replace(engine.mechanism, layout=layout)
    checked: list[ValidRequest] = []
    (outcome,) = generate_all(
        engine, [folder], tmp_path / "out", force=False, checked=checked.append,
        size=SIZE, steps=2, seeds=(0, 1),
    )  # fmt: skip
    assert outcome.error is None and len(outcome.files) == 4  # with contact sheets
    decoded = {name: n for name, n in counts.items() if name.startswith("decoded")}
    assert len(decoded) == 6 and set(decoded.values()) == {1}
    cleaned = {name: n for name, n in counts.items() if name.startswith("cleaned")}
    assert len(cleaned) == 7 and set(cleaned.values()) == {1}  # the caption, six words
    tokenized = {name: n for name, n in counts.items() if name.startswith("tokenized")}
    assert len(tokenized) == 8 and set(tokenized.values()) == {1}  # and the negative prompt
    assert len(layouts) == 1 and counts["planned"] == (limit is not None)
    assert (checked[0].plan is None) == (limit is None)


def test_a_plan_needs_no_encoder(micro_engine, folder, monkeypatch) -> None:
    def load(*args, **options):
        raise AssertionError("an encoder was loaded")

    engine = rt.Engine(micro_engine.folder, micro_engine.manifest, micro_engine.backend)
    monkeypatch.setattr(engines, "load_text_encoder", load)
    monkeypatch.setattr(engines, "load_vae", load)
    assert engine.plan(folder, size=SIZE).peak_bytes > 0
    with pytest.raises(AssertionError, match="an encoder was loaded"):
        engine.prepare(folder, size=SIZE)


def test_a_plan_knows_the_encoders_as_they_are_when_loaded(micro_engine) -> None:
    """Sizes from file headers are those of the loaded model."""
    facts, vae = micro_engine._encoder_facts, micro_engine.vae.model
    assert facts.vae_bytes == sum(p.numel() * p.element_size() for p in vae.parameters())
    assert facts.vae_width == vae.config.base_dim
    assert facts.vae_halo == halo(vae.decoder)


@pytest.mark.slow
def test_large_photos_take_one_decoding_pass(micro_engine, tmp_path) -> None:
    """Eight photos of 12 megapixels: at most 1.3 times one pass of decoding and fitting."""
    pixels = np.random.default_rng(0).integers(0, 256, (3000 // 8, 4000 // 8, 3), np.uint8)
    photo = Image.fromarray(pixels).resize((4000, 3000))
    names = [f"thing{i}" for i in range(8)]
    root = tmp_path / "photos"
    (root / "objects").mkdir(parents=True)
    (root / "caption.txt").write_text("photos;" + " and ".join(names), "utf-8")
    for name in names:
        photo.save(root / "objects" / f"{name}.jpg", quality=90)
    started = time.process_time()
    for name in names:
        image = images.load_image(root / "objects" / f"{name}.jpg", exif=True)
        images.fit_image(image, SIZE.height, SIZE.width)
    one_pass = time.process_time() - started
    started = time.process_time()
    valid = micro_engine.check(root, size=SIZE)
    assert valid.scene.pictures.shape == (8, 32, 48, 3)
    assert time.process_time() - started < 1.3 * one_pass

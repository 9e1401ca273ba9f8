"""Engines: what they make is what the formulas say, and what does not fit is refused."""

import ctypes
import gc
import math
import os
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import lumosx_rt as rt
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT
from tests.helpers import oracle

SIZE = rt.VideoSize(5, 32, 48)  # 2 x 2 x 3 tokens
SCENES = {scene.name: scene for scene in builtin_scenes()}
CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def latents_of(engine, request) -> list[np.ndarray]:
    """The noise and the latents after every step."""
    return [state.latents.numpy().copy() for state in engine.sample(request)]


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)


# -- against the formulas -----------------------------------------------------------------------


def word_positions(caption: str, word: str, length: int) -> list[bool]:
    """The tiny tokenizer has one id per byte, and a space before every text."""
    text, part = f" {caption}".encode(), f" {word}".encode()
    found = [False] * length
    for start in range(len(text)):
        if text[start : start + len(part)] == part:
            found[start : start + len(part)] = [True] * len(part)
    return found


def solve(velocity, noise: torch.Tensor, steps: int, shift: float) -> torch.Tensor:
    """DPM-Solver++(2M) from the formulas of docs/spec.md#solver, in float64."""
    tau = [1 - k / steps for k in range(steps)]
    sigma = [shift * t / (1 + (shift - 1) * t) for t in tau]
    times = [int(1000 * s) for s in sigma]
    sigma = [float(np.float32(s)) for s in sigma] + [0.0]

    def level(s: float) -> float:
        return math.log((1 - s) / s) if 0 < s < 1 else (-math.inf if s == 1 else math.inf)

    z, before, h_before = noise.double(), None, None
    for k in range(steps):
        x0 = z - sigma[k] * velocity(z, times[k])
        h = level(sigma[k + 1]) - level(sigma[k])
        target = x0
        if 0 < k < steps - 1:
            target = x0 + h / (2 * h_before) * (x0 - before)
        z = sigma[k + 1] / sigma[k] * z - (1 - sigma[k + 1]) * (math.exp(-h) - 1) * target
        before, h_before = x0, h
    return z


@pytest.mark.parametrize("guidance", [6.0, 1.0])
@pytest.mark.parametrize("name", SCENES)
def test_an_engine_makes_what_the_formulas_say(micro_engine, micro_bundle, name, guidance):
    scene, steps, shift, seed = SCENES[name], 4, 3.0, 7
    request = micro_engine.prepare(
        scene, size=SIZE, steps=steps, guidance=guidance, shift=shift, seeds=[seed]
    )
    state = {k: v.double() for k, v in load_transformer(micro_bundle).state_dict().items()}
    facts = oracle.Facts(
        video_frames=2,
        height=2,
        width=3,
        lone=int(scene.background is not None),
        subjects=tuple(len(subject.references) for subject in scene.subjects),
    )
    words = [reference.word for reference in scene.references]
    masks = [word_positions(scene.caption, word, 256) for word in words]
    omega = torch.tensor(oracle.word_weights(facts, masks), dtype=torch.float64).reshape(-1, 256)
    images = request.binding.references.double()
    texts = [micro_engine.text_encoder.encode(t).double() for t in (scene.caption, NEGATIVE_PROMPT)]

    def velocity(z: torch.Tensor, time: int) -> torch.Tensor:
        prompt, null = (
            oracle.velocity(state, 3, facts, z, time, text, images, omega, 8.0)[:, :2]
            for text in texts
        )
        return null + guidance * (prompt - null)

    noise = torch.randn(16, 2, 4, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = solve(velocity, noise, steps, shift)
    *_, last = latents_of(micro_engine, request)
    assert last.shape == (1, 16, 2, 4, 6)
    assert error(last[0], expected) < 1e-5


def test_the_pictures_stand_in_the_order_of_the_words(micro_engine):
    scene = SCENES["two-subjects"]
    request = micro_engine.prepare(scene, size=SIZE)
    pictures = [scene.background, *(r for s in scene.subjects for r in s.references)]
    for latent, reference in zip(request.binding.references, pictures, strict=True):
        square = np.full((32, 48, 3), 255, np.uint8)
        square[:, 8:40] = np.asarray(reference.image.resize((32, 32), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(square).permute(2, 0, 1)[None]
        expected = micro_engine.vae.encode_images(pixels)[0, :, 0]
        assert error(latent, expected) < 1e-5


# -- requests -----------------------------------------------------------------------------------


def test_generate_is_prepare_sample_and_decode(micro_engine):
    scene, seen = SCENES["two-subjects"], []
    options = {"size": SIZE, "steps": 3, "seeds": [4, 9]}
    videos = micro_engine.generate(scene, progress=seen.append, **options)
    assert [(s.step, s.steps) for s in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [(v.seed, v.name, v.fps) for v in videos] == [(4, scene.name, 16), (9, scene.name, 16)]
    latents = latents_of(micro_engine, micro_engine.prepare(scene, **options))[-1]
    for video, clip in zip(videos, latents, strict=True):
        assert video.frames.shape == (5, 32, 48, 3) and video.frames.dtype == np.uint8
        pixels = micro_engine.vae.decode(torch.from_numpy(clip)[None])[0].permute(1, 2, 3, 0)
        assert np.abs(video.frames - (pixels.numpy() + 1) / 2 * 255).max() < 1.01
    assert error(videos[0].frames, videos[1].frames) > 0.01


def test_a_scene_may_be_a_folder(micro_engine, tmp_path):
    SCENES["one-subject"].save(tmp_path / "scene")
    options = {"size": SIZE, "steps": 1}
    (from_folder,) = micro_engine.generate(str(tmp_path / "scene"), **options)
    (from_object,) = micro_engine.generate(SCENES["one-subject"], **options)
    assert (from_folder.frames == from_object.frames).all()


def test_what_is_not_said_is_the_engines_default(drawn_engine):
    defaults = drawn_engine.manifest.defaults
    request = drawn_engine.prepare(SCENES["no-references"])
    assert request.size == rt.VideoSize(defaults["frames"], defaults["height"], defaults["width"])
    assert (request.steps, request.shift) == (defaults["steps"], defaults["shift"])
    assert (request.guidance, request.seeds) == (defaults["guidance"], (0,))
    request = drawn_engine.prepare(
        SCENES["no-references"], size=SIZE, steps=1, shift=2.5, guidance=0.0, seeds=[3]
    )
    assert (request.size, request.steps, request.shift) == (SIZE, 1, 2.5)
    assert (request.guidance, request.seeds) == (0.0, (3,))


@pytest.mark.parametrize("guidance", [6.0, 1.0])
@pytest.mark.parametrize("name", SCENES)
def test_several_seeds_equal_single_runs(drawn_engine, name, guidance):
    options = {"size": SIZE, "steps": 3, "guidance": guidance}
    seeds = [5, 0, 123456789]
    together = latents_of(drawn_engine, drawn_engine.prepare(SCENES[name], seeds=seeds, **options))
    for i, seed in enumerate(seeds):
        alone = latents_of(
            drawn_engine, drawn_engine.prepare(SCENES[name], seeds=[seed], **options)
        )
        assert (together[0][i] == alone[0][0]).all()
        for a, b in zip(together, alone, strict=True):
            assert error(a[i], b[0]) <= 1e-5


def test_guidance_of_one_is_the_prompt_alone(drawn_engine):
    """The same as both branches with a factor just beside one; half the streams."""
    scene, streams = SCENES["two-subjects"], []
    right = drawn_engine.backend.bind

    def bind(inputs):
        streams.append(inputs.shape[0])
        return right(inputs)

    engine = rt.Engine(drawn_engine.folder, drawn_engine.manifest, drawn_engine.backend)
    engine.backend = type("Spy", (), {"bind": staticmethod(bind)})
    runs = [
        latents_of(engine, engine.prepare(scene, size=SIZE, steps=3, guidance=g))[-1]
        for g in (1.0, 1.0 + 1e-7, 3.0)
    ]
    assert streams == [1, 2, 2]
    assert error(runs[0], runs[1]) <= 1e-5 < 1e-3 < error(runs[0], runs[2])


def test_requests_are_repeated_exactly_and_do_not_disturb_each_other(drawn_engine):
    requests = [
        drawn_engine.prepare(SCENES[name], size=size, steps=3)
        for name, size in zip(SCENES, (SIZE, rt.VideoSize(9, 48, 32), SIZE), strict=True)
    ]
    alone = [latents_of(drawn_engine, request) for request in requests]
    for request, expected in zip(requests, alone, strict=True):
        assert np.array_equal(latents_of(drawn_engine, request), expected)
    # all three at once, step by step
    running = [drawn_engine.sample(request) for request in requests]
    for step, states in enumerate(zip(*running, strict=True)):
        for state, expected in zip(states, alone, strict=True):
            assert (state.latents.numpy() == expected[step]).all()


def test_stopping_early_runs_no_more_steps(drawn_engine, fault):
    calls = fault()
    request = drawn_engine.prepare(SCENES["one-subject"], size=SIZE, steps=50)
    assert calls == []
    for state in drawn_engine.sample(request):
        if state.step == 2:
            break
    assert len(calls) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and asks glibc to give back")
def test_memory_does_not_grow_with_requests(drawn_engine):
    give_back = ctypes.CDLL(None).malloc_trim

    def held_bytes() -> int:
        gc.collect()
        give_back(0)  # or what lies free in the heap would count
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def some() -> None:
        for _ in range(10):
            drawn_engine.generate(SCENES["two-subjects"], size=SIZE, steps=1)

    some()
    before = held_bytes()
    for _ in range(3):
        some()
    assert held_bytes() - before < 2 << 20


# -- refusals before any work -------------------------------------------------------------------


def grey(word: str) -> Reference:
    return Reference(word, Image.new("RGB", (8, 8), (90, 90, 90)))


def crowd(count: int) -> Scene:
    words = [f"w{i:02}" for i in range(count)]
    return Scene("crowd", " ".join(words), objects=tuple(map(grey, words)))


def person(count: int) -> Scene:
    words = [f"w{i:02}" for i in range(count)]
    return Scene("person", " ".join(words), subjects=(Subject(tuple(map(grey, words))),))


@pytest.fixture
def idle_engine(drawn_engine):
    """An engine that must not work: touching its encoders or its graph is an error."""

    class Untouchable:
        device = "cpu"  # where it is may be asked

        def __getattr__(self, name):
            raise AssertionError(f"{name} was used before the request was refused")

    manifest = replace(
        drawn_engine.manifest,
        layouts=drawn_engine.manifest.layouts | {"members": [1, 5], "frames": [2, 3]},
    )
    engine = rt.Engine(drawn_engine.folder, manifest, Untouchable())
    engine.__dict__ |= {"text_encoder": Untouchable(), "vae": Untouchable()}
    return engine


@pytest.mark.parametrize(
    "scene, options, said",
    [
        (crowd(17), {}, ["17 pictures", "at most 16"]),
        (person(6), {}, ["subject 1 has 6 pictures", "at most 5"]),
        (crowd(3), {"size": rt.VideoSize(13, 32, 48)}, ["frames", "4", "2 to 3"]),
        (crowd(3), {"size": rt.VideoSize(1, 32, 48)}, ["frames", "1", "2 to 3"]),
        (crowd(3), {"seeds": range(65)}, ["seeds", "65", "1 to 64"]),
        (crowd(3), {"seeds": []}, ["seeds"]),
        (Scene("s", "A man.", objects=(grey("woman"),)), {}, ["'woman'", "not in the caption"]),
        (Scene("s", "A man.", objects=(Reference("man", "nowhere.png"),)), {}, ["nowhere.png"]),
        (Scene("s", " "), {}, ["caption"]),
        (crowd(3), {"size": rt.VideoSize(5, 16 * 1025, 16)}, ["1024"]),
    ],
    ids=range(10),
)
def test_what_does_not_fit_is_refused_before_any_work(idle_engine, scene, options, said):
    text = refusal(idle_engine.generate, scene, **{"size": SIZE} | options)
    assert all(part in text for part in said), text


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"steps": -3}, {"shift": 0.0}, {"shift": math.nan}, {"shift": math.inf}]
    + [{"guidance": math.nan}, {"guidance": math.inf}, {"seeds": [1, 1]}, {"seeds": [1 << 70]}],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused_before_any_work(idle_engine, options):
    text = refusal(idle_engine.generate, SCENES["no-references"], **{"size": SIZE} | options)
    assert next(iter(options)) in text


@pytest.mark.parametrize(
    "size", [(6, 32, 48), (0, 32, 48), (5, 30, 48), (5, 32, 0), (-3, 32, 48)], ids=str
)
def test_sizes_that_latents_cannot_have_are_refused(size):
    assert "video size" in refusal(rt.VideoSize, *size)


def test_every_problem_with_a_size_is_named():
    text = refusal(rt.VideoSize, 6, 30, 50)
    assert all(part in text for part in ("frames", "height", "width", "nearest is 5 or 9"))


# -- output that is no video --------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad_step", [1, 3])
def test_latents_that_are_not_finite_are_an_error_that_names_the_step(
    drawn_engine, fault, bad_step, value
):
    def spoiled(velocity, call):
        if call == bad_step:
            velocity[-1, -1, -1, -1, -1, -1] = value
        return velocity

    calls, seen = fault(velocity=spoiled), []
    text = refusal(
        drawn_engine.generate, SCENES["one-subject"], size=SIZE, steps=4, progress=seen.append
    )
    assert f"step {bad_step} of 4" in text and "one-subject" in text and "not finite" in text
    assert len(calls) == bad_step and [s.step for s in seen] == list(range(bad_step))


@pytest.mark.parametrize("colours", [(128, 128, 128), (255, 0, 0), (20, 20, 22)], ids=str)
def test_a_video_of_one_colour_is_an_error(drawn_engine, monkeypatch, colours):
    request = drawn_engine.prepare(SCENES["no-references"], size=SIZE, seeds=[3, 8])
    frames = np.broadcast_to(np.array(colours, np.uint8), (5, 32, 48, 3)).copy()
    shown = frames.copy()
    shown[:, :, 24:] //= 2  # two halves: a picture
    monkeypatch.setattr(drawn_engine.vae, "decode_frames_uint8", lambda clip: shown)
    latents = torch.randn(2, 16, 2, 4, 6)
    assert len(drawn_engine.decode(request, latents)) == 2
    results = iter([shown, frames])
    monkeypatch.setattr(drawn_engine.vae, "decode_frames_uint8", lambda clip: next(results))
    text = refusal(drawn_engine.decode, request, latents)
    assert "flat" in text and "seed 8" in text and "no-references" in text


# -- loading ------------------------------------------------------------------------------------


def test_changed_weights_are_refused_unless_one_insists(micro_engine, micro, micro_bundle, copied):
    folder = copied(micro.folder)
    weights = folder / "transformer" / "model.onnx.data"
    values = np.fromfile(weights, np.float32)
    values[::7] *= -1
    values.tofile(weights)
    text = refusal(rt.load, folder)
    assert "transformer/model.onnx.data" in text and "sha256" in text and "--force" in text
    engine = rt.load(folder, check_hashes=False, components=micro_bundle)
    scene = SCENES["one-subject"]
    changed, right = (
        latents_of(e, e.prepare(scene, size=SIZE, steps=2))[-1] for e in (engine, micro_engine)
    )
    assert np.isfinite(changed).all() and error(changed, right) > 1e-3
    os.truncate(weights, weights.stat().st_size - 1)
    assert "bytes" in refusal(rt.load, folder, check_hashes=False)


def test_a_graph_that_cannot_be_read_is_a_refusal(micro, copied):
    folder = copied(micro.folder)
    graph = folder / "transformer" / "model.onnx"
    graph.write_bytes(b"\x00" * graph.stat().st_size)
    text = refusal(rt.load, folder, check_hashes=False)
    assert "model.onnx" in text and "onnxruntime" in text and "\n" not in text


def test_weights_outside_the_engine_are_not_read(micro, copied, tmp_path):
    import onnx

    folder = copied(micro.folder)
    graph = folder / "transformer" / "model.onnx"
    weights = folder / "transformer" / "model.onnx.data"
    model = onnx.load(graph, load_external_data=False)
    weights.rename(tmp_path / "stolen")
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../stolen"
    onnx.save(model, graph)
    manifest = rt.load(micro.folder).manifest
    from lumosx_rt.artifact.manifest import record_files

    replace(manifest, files=record_files(folder)).write(folder)
    assert "model.onnx" in refusal(rt.load, folder)


def test_an_engine_of_another_backend_is_refused(micro, copied):
    folder = copied(micro.folder)
    replace(rt.load(folder).manifest, backend="openvino").write(folder)
    text = refusal(rt.load, folder)
    assert "'openvino'" in text and "onnxruntime" in text


@pytest.mark.skipif(CUDA, reason="this machine has it")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_is_refused_where_there_is_none(micro):
    text = refusal(rt.load, micro.folder, provider="cuda")
    assert "CUDAExecutionProvider" in text and "--provider cpu" in text
    assert rt.load(micro.folder, provider="auto").backend.describe()["device"].startswith("cpu")


def test_an_unknown_provider_is_refused(micro):
    text = refusal(rt.load, micro.folder, provider="tpu")
    assert "'tpu'" in text and "cuda" in text


def test_encoders_of_another_width_are_refused(micro, copied):
    folder = copied(micro.folder)
    manifest = rt.load(folder).manifest
    replace(manifest, model=manifest.model | {"text_dim": 32}).write(folder)
    text = refusal(rt.load(folder).prepare, SCENES["no-references"], size=SIZE)
    assert "64" in text and "32" in text


def test_importing_the_package_is_instant():
    import subprocess

    code = "import lumosx_rt, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
    assert set(rt.__all__) >= {"Engine", "Scene", "build", "load", "verify"}
    assert all(getattr(rt, name) is not None for name in rt.__all__)
    with pytest.raises(AttributeError):
        rt.nothing  # noqa: B018

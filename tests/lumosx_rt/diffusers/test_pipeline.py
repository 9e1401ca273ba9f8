"""The pipeline for users of diffusers: their words, and the engine's videos bit for bit."""

import inspect
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from diffusers.callbacks import PipelineCallback
from diffusers.utils import export_to_video, export_utils

import lumosx_rt as rt
from lumosx_rt.diffusers import LumosXPipeline
from lumosx_rt.reference.scenes.builtin import builtin_scenes

SIZE = {"height": 32, "width": 48, "num_frames": 5}
SCENE = next(scene for scene in builtin_scenes() if scene.name == "one-subject")
BRIEF = SIZE | {"num_inference_steps": 2}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipe(micro_engine) -> LumosXPipeline:
    pipe = LumosXPipeline.from_engine(micro_engine)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def made(micro_engine) -> list[rt.Video]:
    return micro_engine.generate(SCENE, size=rt.VideoSize(5, 32, 48), steps=2, seeds=[3, 4])


@pytest.fixture(scope="module")
def frames(made) -> np.ndarray:
    return np.stack([video.frames for video in made])


def called(pipe: LumosXPipeline, seed: int = 3, **options):
    return pipe(
        SCENE.caption, **BRIEF, subjects=SCENE.subjects, generator=seeded(seed), **options
    ).frames


def test_the_arguments_are_those_of_diffusers_in_their_order():
    theirs = inspect.signature(WanPipeline.__call__).parameters
    ours = inspect.signature(LumosXPipeline.__call__).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name in ("output_type", "return_dict", "num_videos_per_prompt", "max_sequence_length"):
        assert (
            ours[name].default == inspect.signature(WanPipeline.__call__).parameters[name].default
        )
    assert LumosXPipeline._callback_tensor_inputs == WanPipeline._callback_tensor_inputs


def test_every_output_is_the_engines_video(pipe, frames):
    images = called(pipe, num_videos_per_prompt=2)
    assert images.dtype == np.float32 and 0 <= images.min() and images.max() <= 1
    assert np.array_equal((images * 255).astype(np.uint8), frames)  # as exporters make bytes
    assert np.array_equal(np.rint(images * 255), frames)
    tensor = called(pipe, output_type="pt")
    assert np.array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), images[:1])
    pictures = called(pipe, output_type="pil", seed=4)
    assert np.array_equal([np.asarray(picture) for picture in pictures[0]], frames[1])
    latents = called(pipe, output_type="latent")
    assert latents.shape == (1, 16, 2, 4, 6)
    (tuple_of,) = pipe(scene=SCENE, **BRIEF, generator=seeded(3), return_dict=False)
    assert np.array_equal(tuple_of, images[:1])


def test_export_to_video_is_handed_the_engines_frames(pipe, frames, tmp_path, monkeypatch):
    """diffusers' own exporter, up to the encoder that it would call."""
    written = []
    writer = SimpleNamespace(append_data=written.append)
    plugins = SimpleNamespace(ffmpeg=SimpleNamespace(get_exe=lambda: "ffmpeg"))
    imageio = SimpleNamespace(get_writer=lambda *a, **k: nullcontext(writer), plugins=plugins)
    monkeypatch.setitem(sys.modules, "imageio", imageio)
    monkeypatch.setattr(export_utils, "is_imageio_available", lambda: True)
    for output in ("np", "pil"):
        written.clear()
        export_to_video(called(pipe, output_type=output)[0], str(tmp_path / "a.mp4"), fps=16)
        assert np.array_equal(np.stack(written), frames[0]), output


def test_several_prompts_and_generators(pipe, frames):
    prompts = [SCENE.caption, SCENE.caption]
    images = pipe(
        prompts, ["n", "n"], **BRIEF, subjects=SCENE.subjects, generator=[seeded(4), seeded(3)]
    ).frames
    one = called(pipe, negative_prompt="n", seed=4)
    assert images.shape == (2, 5, 32, 48, 3) and np.array_equal(images[:1], one)
    assert not np.array_equal(images[0], images[1])
    torch.manual_seed(0)
    first = pipe("a lake at dawn", **BRIEF, output_type="latent").frames
    assert not torch.equal(first, pipe("a lake at dawn", **BRIEF, output_type="latent").frames)
    torch.manual_seed(0)
    assert torch.equal(first, pipe("a lake at dawn", **BRIEF, output_type="latent").frames)


def test_a_callback_sees_and_changes_every_step(pipe, frames):
    seen = []

    def look(own, step, time, tensors):
        assert own is pipe and own.current_timestep is time and own.num_timesteps == 2
        seen.append((step, int(time), {name: tuple(t.shape) for name, t in tensors.items()}))
        return tensors

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    images = called(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    text = (1, pipe.engine.config.text_len, pipe.engine.config.text_dim)
    shapes = dict(zip(names, [(1, 16, 2, 4, 6), text, text], strict=True))
    times = pipe.engine.prepare(SCENE, size=rt.VideoSize(5, 32, 48), steps=2).schedule.times
    assert seen == [(step, int(times[step]), shapes) for step in range(2)]
    assert np.array_equal(np.rint(images * 255), frames[:1])
    latents = torch.randn(1, 16, 2, 4, 6)

    class Ours(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"latents": latents}

    found = called(
        pipe,
        callback_on_step_end=Ours(cutoff_step_ratio=None, cutoff_step_index=1),
        output_type="latent",
    )
    assert torch.equal(found, latents)


def test_a_callback_may_interrupt(pipe, micro_engine):
    steps = []

    def stop(own, step, time, tensors):
        steps.append(step)
        own._interrupt = True

    found = called(pipe, callback_on_step_end=stop, output_type="latent")
    request = micro_engine.prepare(SCENE, size=rt.VideoSize(5, 32, 48), steps=2, seeds=[3])
    states = list(micro_engine.sample(request))
    assert steps == [0] and pipe.interrupt and torch.equal(found, states[1].latents)
    assert called(pipe) is not None and not pipe.interrupt


def test_noise_may_be_given(pipe, frames):
    noise = torch.randn(16, 2, 4, 6, generator=seeded(3))[None]
    images = pipe(scene=SCENE, **BRIEF, generator=seeded(9), latents=noise).frames
    assert np.array_equal(np.rint(images * 255), frames[:1])


def test_numbers_of_frames_are_rounded_as_there(pipe, caplog):
    with caplog.at_level("WARNING", "lumosx_rt"):
        found = pipe(scene=SCENE, **BRIEF | {"num_frames": 7}, output_type="latent").frames
    assert found.shape[2] == 2 and "7 is not 1 + 4k; 5 are made" in caplog.text


def used() -> torch.Generator:
    generator = seeded(3)
    torch.rand((), generator=generator)
    return generator


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": None}, "prompt: give a prompt"),
        ({"prompt": []}, "prompt"),
        ({"scene": SCENE}, "scene: it has a caption"),
        ({"output_type": "gif"}, "output_type"),
        ({"generator": used()}, "generator: it was used"),
        ({"generator": 3}, "generator: got int"),
        ({"generator": [seeded(1), seeded(2)]}, "generator: got 2"),
        ({"latents": torch.zeros(1, 2)}, "latents: got"),
        ({"prompt_embeds": torch.zeros(1)}, "words are bound"),
        ({"reference_images": ["a.png"]}, "pictures are bound to words"),
        ({"attention_kwargs": {"scale": 1}}, "compiled"),
        ({"max_sequence_length": 77}, "max_sequence_length: got 77"),
        ({"num_videos_per_prompt": 10**9}, "num_videos_per_prompt"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "accepted are"),
        ({"warp": 1}, "warp: no such argument"),
        ({"height": 33}, "height"),
        ({"num_inference_steps": "many"}, "steps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(pipe, options, said):
    with pytest.raises(rt.LumosXError, match=said):
        pipe(**{"prompt": "a lake at dawn"} | BRIEF | options)


def test_a_refused_call_leaves_its_generator_new(pipe):
    generator = seeded(3)
    with pytest.raises(rt.LumosXError):
        pipe("a lake", **BRIEF | {"height": 33}, generator=generator)
    pipe("a lake", **BRIEF, generator=generator, output_type="latent")
    with pytest.raises(rt.BadInput, match="it was used"):
        pipe("a lake", **BRIEF, generator=generator)


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda pipe: pipe.enable_model_cpu_offload(), "max_memory"),
        (lambda pipe: pipe.enable_vae_tiling(), "max_memory"),
        (lambda pipe: pipe.load_lora_weights("x"), "merge it"),
        (lambda pipe: pipe.to("cuda"), "lumosx-rt build"),
        (lambda pipe: pipe.to(torch.float16), "lumosx-rt build"),
        (lambda pipe: pipe.transformer.set_attention_backend("flash"), "lumosx-rt build"),
        (lambda pipe: pipe.transformer.enable_cache(None), "rt.Lossy"),
        (lambda pipe: pipe.transformer.to("cuda"), "lumosx-rt build"),
        (
            lambda pipe: LumosXPipeline.from_pretrained("x", torch_dtype=torch.float16),
            "--precision",
        ),
    ],
)
def test_what_an_engine_cannot_do_says_what_to_do_instead(pipe, call, instead):
    with pytest.raises(rt.Unsupported, match=instead):
        call(pipe)


def test_a_pipeline_of_a_folder(pipe, micro, frames):
    own = LumosXPipeline.from_pretrained(micro.folder, provider="cpu")
    own.set_progress_bar_config(disable=True)
    assert own.to("cpu") is own and own.device.type == "cpu"
    assert np.array_equal(np.rint(called(own) * 255), frames[:1])
    assert own.guidance_scale == 6 and own.do_classifier_free_guidance
    assert own.tokenizer("").input_ids == [1] and own.vae.config.z_dim == 16
    assert not hasattr(own, "warp") and not hasattr(own.transformer, "warp")

"""Videos of an odd number of latent rows or columns are, on every backend, what the model says."""

import pytest
import torch

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import GRAPH
from lumosx_rt.backends.common.odd_sizes import even, takes_odd_sizes
from lumosx_rt.backends.onnxruntime.step_cache import CachingBackend
from lumosx_rt.backends.tensorrt.run import TensorRtBackend
from lumosx_rt.backends.torch.run import TorchBackend
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.denoise import calls_of
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import Inputs, check_shapes
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime import diagnosis
from tests.helpers.budget import assert_within_budget, in_float64, widened

NONE, ONE, TWO = builtin_scenes()
LARGE = pytest.param((1, 360, 640), marks=pytest.mark.slow)
SIZES = [(1, 360, 40), (5, 24, 40), (5, 8, 8), (1, 16, 24), (1, 24, 16), (9, 8, 72)]
TIME = 500


@pytest.fixture(scope="module")
def model(micro_bundle):
    return load_transformer(micro_bundle)


def call_of(engine, size, scene=TWO):
    request = engine.prepare(scene, size=rt.VideoSize(*size), steps=2, guidance=3.0)
    (inputs,) = calls_of([request], engine.config.head_dim)
    return inputs, torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1))


def velocity(backend, inputs, latents):
    return backend.bind(inputs)(latents, TIME).clone()


def exact(model, inputs, latents):
    times = torch.full(inputs.shape[:1], TIME)
    given = widened((latents, times, *inputs.arguments()))
    with torch.inference_mode():
        return in_float64(model)(*given)


@pytest.mark.parametrize("size", [*SIZES, LARGE], ids=str)
def test_an_engine_takes_odd_sizes_as_the_reference_does(micro_engine, model, size):
    inputs, latents = call_of(micro_engine, size)
    assert any(side % 2 for side in inputs.shape[-2:])
    plain = velocity(EagerBackend(model), inputs, latents)
    made = velocity(micro_engine.backend, inputs, latents)
    assert_within_budget(str(size), made, plain, exact(model, inputs, latents))
    spoiled = torch.cat([latents[..., :-1], -latents[..., -1:]], -1)
    assert relative_error(velocity(micro_engine.backend, inputs, spoiled), plain) > 1e-3


def test_shortcuts_take_them_too(micro, micro_engine, model):
    backend = CachingBackend(micro.folder / GRAPH, model.config, rt.Lossy(keys_every=2), "cpu")
    inputs, latents = call_of(micro_engine, (5, 24, 40))
    plain = velocity(EagerBackend(model), inputs, latents)
    made = velocity(backend, inputs, latents)
    assert_within_budget("shortcuts", made, plain, exact(model, inputs, latents))


class EvenOnly(EagerBackend):
    """The reference, as a compiled backend knows it."""

    @takes_odd_sizes
    def bind(self, inputs: Inputs):
        check_shapes({name: x.shape for name, x in inputs.feed(
            torch.zeros(inputs.shape), torch.zeros(inputs.shape[:1])).items()})  # fmt: skip
        return super().bind(inputs)


@pytest.mark.parametrize("scene", [NONE, TWO], ids=lambda scene: scene.name)
def test_padding_outside_of_a_graph_is_padding_inside(micro_engine, model, scene):
    inputs, latents = call_of(micro_engine, (5, 24, 40), scene)
    plain = velocity(EagerBackend(model), inputs, latents)
    assert torch.equal(velocity(EvenOnly(model), inputs, latents), plain)
    whole, _ = call_of(micro_engine, (5, 32, 48), scene)
    assert even(whole).shape == whole.shape and even(even(inputs)).shape == even(inputs).shape


@pytest.mark.parametrize("kind", [TorchBackend, TensorRtBackend])
def test_backends_that_are_not_loaded_here_do_so_too(kind):
    assert kind.bind.__wrapped__ is not None


def test_what_is_not_finite_is_found_in_them(micro, micro_engine):
    inputs, latents = call_of(micro_engine, (5, 24, 40))
    assert diagnosis.in_graph(micro.folder / GRAPH, inputs, latents, TIME) is None
    inputs.tensors["references"][0, 0, 0, 0, 0] = torch.nan
    assert diagnosis.in_graph(micro.folder / GRAPH, inputs, latents, TIME) is not None


def test_a_video_is_made_and_verified(run, micro_engine, micro, copied, micro_bundle, scenes):
    (video,) = micro_engine.generate(ONE, size=rt.VideoSize(5, 8, 24), steps=2)
    assert video.frames.shape == (5, 8, 24, 3)
    where = ["--checkpoint", micro_bundle, "--components", micro_bundle, "--provider", "cpu"]
    size = ["--frames", 5, "--height", 24, "--width", 40, "--steps", 2]
    done = run("verify", copied(micro.folder), scenes / "a", *size, *where)
    assert "Verification: passed" in done.stdout

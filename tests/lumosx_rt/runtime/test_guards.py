"""Nothing that is no video gets out, and what went wrong is named down to the block."""

import math
import os
import pickle
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import lumosx_rt as rt
from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend
from lumosx_rt.backends.onnxruntime.step_cache import CachingBackend
from lumosx_rt.backends.torch.run import TorchBackend
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.encoders.umt5 import load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import load_vae
from lumosx_rt.reference.errors import Flat, NotFinite
from lumosx_rt.reference.process import check_process
from lumosx_rt.reference.sampling import denoise as runtime
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime import diagnosis
from lumosx_rt.runtime.guards import Health, latents_are_flat
from tests.helpers.forked import in_a_fork

NONE, ONE, TWO = builtin_scenes()
SIZE = rt.VideoSize(5, 32, 48)
BLOCK = re.compile(r"blocks\.\d+|head|\w+_embedding|time_projection")
VALUES = (math.nan, math.inf)


@pytest.fixture(scope="module")
def request_of_two(micro_engine):
    return micro_engine.prepare(TWO, size=SIZE, steps=3, guidance=3.0)


@pytest.fixture(scope="module")
def model(micro_bundle):
    """The micro checkpoint with norms that are not all one, as trained ones are not."""
    model = load_transformer(micro_bundle)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def call_of(request, head_dim):
    (inputs,) = runtime.calls_of([request], head_dim)
    return inputs, torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1))


def stage_of(name: str) -> str:
    """`blocks.1` of `blocks.1.ffn.0.weight`."""
    found = BLOCK.search(name)
    assert found, name
    return found[0]


# -- the place ----------------------------------------------------------------------------------


def test_every_parameter_of_the_reference_is_found_in_its_block(model, request_of_two):
    inputs, latents = call_of(request_of_two, model.config.head_dim)
    assert diagnosis.in_model(model, inputs, latents, 500) is None
    names = [name for name, _ in model.named_parameters()]
    assert len(names) > 60
    for i, name in enumerate(names):
        values = model.get_parameter(name).data.flatten()
        kept, values[i % len(values)] = values[i % len(values)].clone(), VALUES[i % 2]
        velocity = EagerBackend(model).bind(inputs)(latents, 500)
        site = diagnosis.in_model(model, inputs, latents, 500)
        assert not torch.isfinite(velocity).all(), name
        assert site is not None and stage_of(site) == stage_of(name), (name, site)
        if "norm" not in name and "modulation" not in name:
            assert name.startswith(site), (name, site)
        values[i % len(values)] = kept
    assert diagnosis.in_model(model, inputs, latents, 500) is None  # nothing is left behind
    assert isinstance(model, LumosX) and not model.head._forward_pre_hooks


def every_use(graph, name):
    return [(n, k) for n in graph.graph.node for k, x in enumerate(n.input) if x == name]


def graph_sites(path, model):
    """Every place where the graph reads a parameter: (node, input, what it is called).

    By content and by neighbours, not by order: a linear's weight and bias are the only such numbers
    of the checkpoint; norms, all ones here and stored once, stand beside a linear.
    """
    graph = onnx.load(path)
    stored = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    by_content = {}
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            matrix = parameter.detach().numpy().reshape(parameter.shape[0], -1)
            by_content[np.sort(matrix, axis=None).tobytes()] = name
    nodes = list(graph.graph.node)
    known = {}
    for name, values in stored.items():
        if values.dtype == np.float32 and values.size > 1:
            known[name] = by_content.get(np.sort(values, axis=None).tobytes())
    near = {value: known.get(n) for node in nodes for n in node.input for value in node.output
            if known.get(n)}  # fmt: skip
    found = []
    for node in nodes:
        users = [u for u in nodes if set(node.output) & set(u.input)]
        users += [w for u in users for w in nodes if set(u.output) & set(w.input)]
        for i, name in enumerate(node.input):
            if known.get(name):
                found.append((node, i, known[name]))
            elif name in stored and "norm" in name and node.op_type in ("Mul", "Add"):
                before = [near.get(v) for p in nodes if set(p.output) & set(node.input)
                          for v in p.input]  # fmt: skip
                after = [near[v] for u in users for v in u.output if v in near]
                found.append((node, i, next(filter(None, [*before, *after]))))
    return graph, stored, found


@pytest.mark.slow
def test_every_parameter_of_a_graph_is_found_in_its_block(micro, micro_engine, micro_bundle,
                                                          request_of_two, tmp_path):  # fmt: skip
    inputs, latents = call_of(request_of_two, micro_engine.config.head_dim)
    path = micro.folder / "transformer" / "model.onnx"
    assert diagnosis.in_graph(path, inputs, latents, 500) is None
    graph, stored, sites = graph_sites(path, load_transformer(micro_bundle))
    names = {name for _, _, name in sites}
    missing = {n for n, _ in load_transformer(micro_bundle).named_parameters()} - names
    assert all("norm" in name for name in missing)
    found = {(name, "norm" in n.input[k]): (n, k, name) for n, k, name in sites}
    # of a linear the weight in block 0, the bias in block 1; of everything else all
    twice = re.compile(r"blocks\.(0\..*\.bias|1\..*\.weight)")
    sites = [site for (name, norm), site in found.items() if norm or not twice.fullmatch(name)]
    assert len(sites) > 40
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    for i, (node, place, name) in enumerate(sites):
        stem = node.input[place]
        right, values = stored[stem], stored[stem].copy()
        values.flat[i % values.size] = VALUES[i % 2]
        tensors[stem].CopyFrom(numpy_helper.from_array(values, stem))
        graph.graph.initializer.append(numpy_helper.from_array(right, "right"))
        others = [(n, k) for n, k in every_use(graph, stem) if n is not node]
        for other, k in others:
            other.input[k] = "right"
        onnx.save(graph, tmp_path / "spoiled.onnx")
        site = diagnosis.in_graph(tmp_path / "spoiled.onnx", inputs, latents, 500)
        assert site is not None and stage_of(site) == stage_of(name), (name, node.name, site)
        tensors[stem].CopyFrom(numpy_helper.from_array(right, stem))
        graph.graph.initializer.pop()
        for other, k in others:
            other.input[k] = stem


@pytest.mark.parametrize("value", VALUES)
def test_a_damaged_engine_names_step_and_block_and_counts(micro, micro_bundle, copied, value):
    folder = copied(micro.folder)
    path = folder / "transformer" / "model.onnx"
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        if tensor.name == "model.blocks.1.ffn.0.bias":
            values = numpy_helper.to_array(tensor).copy()
            values[3] = value
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for file in path.parent.iterdir():
        file.unlink()
    onnx.save(graph, path, save_as_external_data=True, location="model.onnx.data",
              size_threshold=1024)  # fmt: skip
    from lumosx_rt.artifact.manifest import record_files

    manifest = rt.load(micro.folder, check_hashes=False).manifest
    replace(manifest, files=record_files(folder)).write(folder)
    engine = rt.load(folder, components=micro_bundle)
    with pytest.raises(NotFinite) as error:
        engine.generate(TWO, size=SIZE, steps=3)
    assert "after step 1 of 3" in str(error.value) and "at blocks.1.ffn.0" in str(error.value)
    assert engine.health.as_dict() == Health(requests=1, non_finite=1).as_dict()


def test_compiled_code_is_explained_by_the_reference(micro_engine, request_of_two, monkeypatch,
                                                     micro_bundle):  # fmt: skip
    class Opaque:
        def bind(self, inputs):
            return lambda latents, time: torch.full(inputs.shape, math.nan)

        def describe(self):
            return {}

    folder, manifest = micro_engine.folder, replace(micro_engine.manifest, backend="torch")
    engine = rt.Engine(folder, manifest, Opaque())
    engine.__dict__["text_encoder"] = micro_engine.text_encoder
    engine.__dict__["vae"] = micro_engine.vae
    with pytest.raises(NotFinite, match="run again in the reference .* is finite"):
        list(engine.sample(request_of_two))
    right = load_transformer(micro_bundle)
    right.blocks[1].self_attn.k.weight.data[0, 0] = math.nan
    monkeypatch.setattr("lumosx_rt.artifact.source.CheckpointSource.load", lambda self: right)
    with pytest.raises(NotFinite, match=r"blocks\.1\.self_attn\.k in the reference"):
        list(engine.sample(request_of_two))
    lost = replace(manifest, checkpoint={"source": "bundle", "kind": "x", "sha256": "0" * 64})
    with pytest.raises(NotFinite, match="the backend torch shows no insides"):
        list(rt.Engine(folder, lost, Opaque()).sample(request_of_two))


# -- the latents and the frames -----------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("step", range(3))
def test_latents_spoiled_at_any_step_are_caught_at_the_next(
    micro_engine, request_of_two, step, value
):
    engine = rt.Engine(micro_engine.folder, micro_engine.manifest, micro_engine.backend)
    with pytest.raises(NotFinite) as error:
        for state in engine.sample(request_of_two):
            assert torch.isfinite(state.latents).all()
            if state.step == step:
                state.latents[0, 3, 1, 2, 2] = value
    assert f"after step {step + 1} of 3" in str(error.value)
    assert "the latents were not finite before it" in str(error.value)
    assert engine.health.steps == step and engine.health.non_finite == 1


def test_what_encoders_spoil_is_caught_before_any_step(micro_engine, monkeypatch, fault):
    calls = fault()
    for part, broken, said in (
        ("text_encoder", "embed", "text encoder's embeddings of the prompt"),
        ("vae", "encode_images", "VAE's latents of the references"),
    ):
        engine = rt.Engine(micro_engine.folder, micro_engine.manifest, micro_engine.backend)
        engine.__dict__["text_encoder"] = micro_engine.text_encoder
        engine.__dict__["vae"] = micro_engine.vae
        right = getattr(getattr(engine, part), broken)
        with monkeypatch.context() as patch:
            patch.setattr(getattr(engine, part), broken, lambda x, right=right: right(x) * math.nan)
            with pytest.raises(NotFinite, match=said):
                engine.generate(TWO, size=SIZE, steps=1)
        assert engine.health.as_dict() == Health(requests=1, non_finite=1).as_dict()
    assert calls == []


def test_latents_and_pixels_that_are_no_picture_are_caught(
    micro_engine, request_of_two, monkeypatch
):
    engine = rt.Engine(micro_engine.folder, micro_engine.manifest, micro_engine.backend)
    engine.__dict__["vae"] = micro_engine.vae
    latents = torch.randn(1, 16, 2, 4, 6)
    with pytest.raises(Flat, match="latents after the last step are flat"):
        engine.decode(request_of_two, torch.zeros_like(latents) + torch.randn(16, 1, 1, 1))
    with pytest.raises(NotFinite, match="the latents to decode"):
        engine.decode(request_of_two, latents.index_fill(1, torch.tensor([2]), math.nan))
    assert len(engine.decode(request_of_two, latents)) == 1
    bias = micro_engine.vae.model.decoder.conv_out.bias
    monkeypatch.setattr(bias, "data", bias.data.clone().fill_(math.nan))
    with pytest.raises(NotFinite, match="'two-subjects', seed 0: .*pixels"):
        engine.decode(request_of_two, latents)
    assert engine.health.as_dict() == Health(flat=1, non_finite=2, videos=1).as_dict()


def test_what_is_flat():
    torch.manual_seed(0)
    colour = torch.randn(16, 1, 1, 1).expand(16, 3, 4, 6)
    assert latents_are_flat(colour)
    assert not latents_are_flat(colour + 1e-2 * torch.randn(16, 3, 4, 6))
    assert not latents_are_flat(colour[:, :1, :1, :1])  # of one cell nothing can be said


def test_health_counts_refusals_and_videos(micro_engine):
    engine = rt.Engine(micro_engine.folder, micro_engine.manifest, micro_engine.backend)
    engine.__dict__["text_encoder"] = micro_engine.text_encoder
    engine.__dict__["vae"] = micro_engine.vae
    with pytest.raises(rt.LumosXError):
        engine.generate(replace(ONE, caption="nobody"), size=SIZE, steps=1)
    engine.generate(NONE, size=SIZE, steps=2, seeds=[1, 2])
    counts = Health(requests=2, refused=1, steps=2, videos=2)
    assert engine.health.as_dict() == counts.as_dict()


# -- forks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OnnxRuntimeBackend, CachingBackend, TorchBackend])
def test_a_backend_that_was_loaded_before_a_fork_is_refused_after_it(kind):
    loaded = kind.__new__(kind)
    loaded._pid = os.getpid()
    inputs = SimpleNamespace(shape=(1, 1, 16, 1, 2, 2))
    told = in_a_fork(lambda: loaded.bind(inputs))
    assert told.startswith("Unsupported: an engine of the backend") and "load it again here" in told
    with pytest.raises(AttributeError):  # here it goes on, and misses what was not loaded
        loaded.bind(inputs)


def test_a_loaded_engine_does_not_sample_in_a_fork(request_of_two, micro_engine):
    told = in_a_fork(lambda: list(micro_engine.sample(request_of_two)))
    assert told.startswith("Unsupported: ") and "another process" in told
    check_process(os.getpid(), "an engine")


def test_encoders_that_were_loaded_before_a_fork_are_refused_after_it(micro_engine, micro_bundle):
    text, vae = micro_engine.text_encoder, micro_engine.vae
    latents, picture = torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 3, 16, 16)
    for plain in (load_text_encoder(micro_bundle), text):
        told = in_a_fork(lambda plain=plain: plain.encode("a man"))
        assert told.startswith("Unsupported: the text encoder was loaded in another process")
    for plain in (load_vae(micro_bundle), vae):
        for call in (
            lambda plain=plain: plain.encode_images(picture),
            lambda plain=plain: plain.decode(latents),
            lambda plain=plain: next(plain.decode_chunks(latents)),
            lambda plain=plain: plain.decode_frames_uint8(latents),
        ):
            assert in_a_fork(call).startswith("Unsupported: the VAE was loaded in another process")
    sent = load_vae(micro_bundle)
    sent._pid = -1  # of the process that sent it to a worker that started afresh
    assert pickle.loads(pickle.dumps(sent)).decode(latents).shape == (1, 3, 1, 16, 16)

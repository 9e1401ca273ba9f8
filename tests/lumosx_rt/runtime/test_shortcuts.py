"""Shortcuts over neighbouring steps, against the reference made to take them the slow way."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

import lumosx_rt as rt
from lumosx_rt.artifact.manifest import GRAPH, read_manifest
from lumosx_rt.backends.onnxruntime.step_cache import CachingBackend
from lumosx_rt.export.onnx.named_values import keys_of
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.ops import (
    QKV,
    Attended,
    Ops,
    SelfAttention,
    self_attention,
)
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.layout import layout_of
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.denoise import calls_of, denoise
from lumosx_rt.reference.sampling.inputs import Inputs
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.shortcuts import Lossy
from lumosx_rt.reference.scenes.builtin import builtin_scenes
from lumosx_rt.runtime import memory

STEPS = 6


class Slow:
    """The reference in full at every step, whose results are then replaced by older ones."""

    def __init__(self, model: LumosX, lossy: Lossy) -> None:
        self.model, self.lossy = model, lossy
        self.whole_steps = 0

    def bind(self, inputs: Inputs) -> Callable[[Tensor, int], Tensor]:
        keys: dict[str, tuple[Tensor, Tensor]] = {}
        kept: dict[str, Tensor] = {}
        steps = count()

        def attention(call: SelfAttention) -> Attended:
            older = QKV(None, *keys[call.site])
            out, _ = self_attention(call._replace(condition=older))
            return out, self_attention(call)[1]

        def refreshing(call: SelfAttention) -> Attended:
            keys[call.site] = call.condition.k, call.condition.v
            return self_attention(call)

        def last(first: Tensor, second: Tensor, last: Tensor) -> Tensor:
            """What the head is given."""
            residual = second - first
            if kept:
                difference = (residual - kept["residual"]).abs().mean((1, 2))
                change = (difference / kept["residual"].abs().mean((1, 2))).max()
                if change <= self.lossy.skip_below:
                    return second + kept["added"]
            self.whole_steps += 1
            kept.update(residual=residual, added=last - second)
            return last

        @torch.no_grad()
        def run(latents: Tensor, time: int) -> Tensor:
            fresh = next(steps) % self.lossy.keys_every == 0
            times = torch.full((inputs.shape[0],), time)
            static = inputs.arguments()
            with replaced(self.model, refreshing if fresh else attention, last):
                velocity: Tensor = self.model(latents, times, *static)
            return velocity

        return run

    def describe(self) -> dict[str, str]:
        return {"backend": "slow"}


@contextmanager
def replaced(model: LumosX, attention: Any, last: Callable[..., Tensor]) -> Iterator[None]:
    """The model with another self-attention; `last` of what enters the first block, the second and
    the head is what the head is given."""
    states: list[Tensor] = []

    def entered(module: Any, given: tuple[Any, ...]) -> Any:
        x, delta, gate = given[0]
        states.append(x if delta is None else x + gate * delta)
        return ((last(*states), None, None), *given[1:]) if len(states) == 3 else given

    own, model.ops = model.ops, Ops(self_attention=attention)
    places = [*model.blocks[:2], model.head]
    handles = [module.register_forward_pre_hook(entered) for module in places]
    try:
        yield
    finally:
        model.ops = own
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def model(micro_bundle: Path) -> LumosX:
    return load_transformer(micro_bundle)


@pytest.fixture(scope="module")
def request_of(micro_engine: Any) -> Callable[..., Request]:
    """Two people, guided: two streams of one call."""
    *_, two = builtin_scenes()

    def prepared(**settings: Any) -> Request:
        given = {"size": rt.VideoSize(5, 32, 48), "steps": STEPS, "guidance": 3.0, "seeds": (0, 1)}
        request: Request = micro_engine.prepare(two, **given | settings)
        return request

    return prepared


def latents(backend: Any, request: Request, model: LumosX, **options: Any) -> Tensor:
    *_, state = denoise(backend, request, model.config.head_dim, **options)
    return state.latents


def lossy(folder: Path, **shortcuts: Any) -> CachingBackend:
    backend = rt.load(folder, provider="cpu", unverified=True, lossy=Lossy(**shortcuts)).backend
    assert isinstance(backend, CachingBackend)
    return backend


@pytest.mark.parametrize("sequential", [False, True], ids=["together", "sequential"])
@pytest.mark.parametrize(
    ("keys_every", "skip_below"), [(2, 0.0), (3, 0.0), (1, 0.1), (1, 0.4), (2, 0.2)]
)
def test_shortcuts_are_those_of_the_slow_way(
    micro: Any, model: LumosX, request_of: Any, keys_every: int, skip_below: float, sequential: bool
) -> None:
    shortcuts, request = Lossy(keys_every, skip_below), request_of()
    fast, slow = lossy(micro.folder, **vars(shortcuts)), Slow(model, shortcuts)
    found, expected = (latents(b, request, model, sequential=sequential) for b in (fast, slow))
    assert relative_error(found, expected) < 1e-5
    exact = latents(Slow(model, Lossy()), request, model)
    assert relative_error(expected, exact) > 1e-4
    calls = 2 if sequential else 1
    assert fast.runs["keys"] == (calls * -(-STEPS // keys_every) if keys_every > 1 else 0)
    if skip_below:
        assert fast.runs["first"] == fast.runs["head"] == calls * STEPS
        assert calls <= fast.runs["rest"] == slow.whole_steps < calls * STEPS


@pytest.mark.parametrize("wrong", [{"keys_every": 3}, {"skip_below": 0.1}], ids=str)
def test_other_shortcuts_are_another_video(
    micro: Any, model: LumosX, request_of: Any, wrong: dict[str, Any]
) -> None:
    right = Lossy(2, 0.2)
    found = latents(lossy(micro.folder, **vars(right) | wrong), request_of(), model)
    assert relative_error(found, latents(Slow(model, right), request_of(), model)) > 1e-4


def test_what_changes_not_at_all_is_exact(
    micro: Any, micro_engine: Any, model: LumosX, request_of: Any
) -> None:
    backend = lossy(micro.folder, skip_below=1e-9)
    found = latents(backend, request_of(), model)
    assert relative_error(found, latents(micro_engine.backend, request_of(), model)) < 1e-6
    assert backend.runs["rest"] == STEPS


def test_requests_keep_nothing_of_each_other(micro: Any, model: LumosX, request_of: Any) -> None:
    backend = lossy(micro.folder, keys_every=2, skip_below=0.2)
    one, other = request_of(), request_of(seeds=(7, 8), shift=5.0)
    alone = [latents(backend, request, model) for request in (one, other)]
    between = zip(*(denoise(backend, r, model.config.head_dim) for r in (one, other)), strict=True)
    *_, states = between
    for expected, state in zip(alone, states, strict=True):
        assert torch.equal(state.latents, expected)


def test_scenes_without_references_are_made(micro: Any, model: LumosX, micro_engine: Any) -> None:
    nobody, *_ = builtin_scenes()
    request = micro_engine.prepare(nobody, size=rt.VideoSize(5, 32, 48), steps=STEPS)
    assert request.layout.references == 0
    found = latents(lossy(micro.folder, keys_every=2), request, model)
    assert relative_error(found, latents(micro_engine.backend, request, model)) < 1e-6


def test_numbers_that_are_none_are_not_skipped(micro: Any, model: LumosX, request_of: Any) -> None:
    backend = lossy(micro.folder, skip_below=1e9)
    (inputs,) = calls_of([request_of()], model.config.head_dim)
    run, good = backend.bind(inputs), torch.randn(inputs.shape)
    run(good, 900)
    run(good, 800)
    assert backend.runs["rest"] == 1
    assert not torch.isfinite(run(torch.full_like(good, torch.nan), 700)).all()
    assert backend.runs["rest"] == 2


def test_references_that_see_the_video_have_no_keys_apart(
    micro: Any, model: LumosX, request_of: Any
) -> None:
    request = request_of(seeds=(0,))
    seeing = replace(request, layout=replace(request.layout, relational_visibility=False))
    with pytest.raises(rt.LumosXError, match="references see the video"):
        latents(lossy(micro.folder, keys_every=2), seeing, model)
    shortcuts = Lossy(skip_below=0.2)
    found = latents(lossy(micro.folder, skip_below=0.2), seeing, model)
    assert relative_error(found, latents(Slow(model, shortcuts), seeing, model)) < 1e-5


# -- what is refused, planned and said -----------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keys_every": 0}, "lossy keys .1 is exact.: got"),
        ({"keys_every": float("nan")}, "lossy keys .1 is exact.: got"),
        ({"skip_below": -0.1}, "lossy skip .a share; 0 is exact.: got"),
        ({"skip_below": float("nan")}, "lossy skip .a share; 0 is exact.: got"),
        ({"skip_below": float("inf")}, "lossy skip .a share; 0 is exact.: got"),
    ],
)
def test_what_is_no_shortcut(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(rt.LumosXError, match=words):
        Lossy(**wrong)


def test_only_graphs_take_shortcuts(compiled: Any, micro: Any) -> None:
    with pytest.raises(rt.LumosXError, match="compiled as a whole"):
        rt.load(compiled.folder, unverified=True, lossy=Lossy(2))
    with pytest.raises(rt.LumosXError, match="compiles whole graphs"):
        rt.load(micro.folder, provider="tensorrt", unverified=True, lossy=Lossy(2))


def test_a_graph_of_before_is_to_be_built_again(copied: Any, micro: Any) -> None:
    folder = copied(micro.folder)
    proto = onnx.load(folder / GRAPH, load_external_data=False)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = "nameless" if name == keys_of(0)[0] else name
    (folder / GRAPH).write_bytes(proto.SerializeToString())
    with pytest.raises(rt.LumosXError, match="build the engine again"):
        CachingBackend(folder / GRAPH, model_config(folder), Lossy(2), "cpu")


def model_config(folder: Path) -> Any:
    from lumosx_rt.reference.backbones.config import LumosXConfig

    return LumosXConfig.from_dict(read_manifest(folder).model)


def test_memory_that_is_kept_is_planned(micro: Any, micro_engine: Any) -> None:
    """Keys and values of every block, a video of zeros for them; four residual streams."""
    *_, two = builtin_scenes()
    size = rt.VideoSize(5, 32, 48)
    layout, config = layout_of(two, size.grid), micro_engine.config
    streams, seeds = 2, 3
    condition = 4 * config.dim * streams * layout.references * layout.frame_tokens
    video = 4 * config.dim * streams * seeds * layout.video_tokens

    def kept(**shortcuts: Any) -> int:
        return memory.kept_bytes(
            memory.MemoryNeed(
                config=config, backend="onnxruntime", number_bytes=4, layout=layout, size=size,
                seeds=seeds, lossy=Lossy(**shortcuts),
            )
        )  # fmt: skip

    assert kept() == 0
    assert kept(keys_every=2) == 2 * config.num_layers * condition + video
    assert kept(skip_below=0.1) == 4 * video
    assert kept(keys_every=2, skip_below=0.1) == kept(keys_every=2) + kept(skip_below=0.1)
    exact, lossy = (
        rt.load(micro.folder, provider="cpu", unverified=True, lossy=shortcuts).plan(two, size=size)
        for shortcuts in (Lossy(), Lossy(2, 0.1))
    )
    own = [plan.denoise_bytes - plan.held_bytes for plan in (exact, lossy)]
    assert own[1] - own[0] > 2 * config.num_layers * condition + 5 * video / seeds


def test_generate_says_that_it_is_lossy(run: Any, micro: Any, scenes: Path, tmp_path: Path) -> None:
    size = ("--frames", "5", "--height", "32", "--width", "48", "--steps", "3")
    words = ("generate", micro.folder, scenes / "a", "-o", tmp_path / "out", *size)
    done = run(*words, "--lossy-keys", "2", "--lossy-skip", "0.1")
    assert "lossy (references' keys at every 2 steps, blocks skipped below" in done.stderr
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1
    assert "lossy" not in run(*words, "--force").stderr
    assert "lossy keys" in run(*words, "--force", "--lossy-keys", "0", code=2).stderr


def test_bench_judges_shortcuts_and_keeps_them_from_the_certificate(
    run: Any, micro: Any, copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(micro.folder)
    monkeypatch.chdir(tmp_path)
    words = ("bench", folder, "--list", "ci", "--scenes", "1", "--steps", "2")
    run(*words, "-o", tmp_path / "exact")
    exact = tmp_path / "exact" / "scenes.jsonl"
    done = run(*words, "--against", exact, "--lossy-keys", "2")
    assert f"out/bench-{folder.name}-binding-ci-keys2/" in done.stdout
    (identity,) = tmp_path.glob("out/*/run.json")
    assert json.loads(identity.read_text())["maker"]["lossy"] == str(Lossy(2))
    assert "binding" not in (folder / "report.json").read_text()
    run(*words, "-o", tmp_path / "again", "--against", exact)
    assert "binding" in (folder / "report.json").read_text()
    assert (
        "leave them away"
        in run("bench", folder, "--suite", "speed", "--lossy-skip", "0.1", code=1).stderr
    )


def test_the_reference_takes_no_shortcuts(run: Any, micro_bundle: Path, tmp_path: Path) -> None:
    words = ("bench", micro_bundle, "--scenes", "1", "-o", tmp_path / "out", "--lossy-keys", "2")
    assert "the reference takes no shortcuts" in run(*words, code=1).stderr

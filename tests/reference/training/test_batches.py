"""Batches against slow, obvious readings of the cache; and that they depend on nothing else."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.robustness import toy
from benchmarks.robustness.toy import CONFIG, SIZE, Toy
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.binding import word_template
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import structure_of
from lumosx_rt.reference.training.batches import Batch, batch_at, place
from lumosx_rt.reference.training.latents import LatentCache, build_cache
from lumosx_rt.reference.training.recipe import Recipe, Stage, Times

SOURCE = Toy(21)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> LatentCache:
    folder = tmp_path_factory.mktemp("cache")
    return build_cache(folder, SOURCE, SIZE, *toy.encoders(), variants=2)


def recipe_of(stage: dict | None = None, **options) -> Recipe:
    options = {"text_dropout": 0.0, "variants": 2, "model": CONFIG, "size": SIZE} | options
    chosen = {"streams": 4, "seeds": 3, "steps": 1000} | (stage or {})
    return Recipe(stages=(Stage(name="one", data=SOURCE, **chosen),), **options)


def batches(cache: LatentCache, recipe: Recipe, count: int = 40) -> list[Batch]:
    return [batch_at(recipe, recipe.stages[0], cache, step) for step in range(count)]


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [*batch[:6], *batch.structure, batch.scenes]


def found(reference: torch.Tensor, looks: torch.Tensor) -> int:
    """Which of an example's pictures a reference is."""
    (r,) = [r for r in range(len(looks)) if torch.equal(looks[r].float(), reference)]
    return r


# -- what a batch holds ---------------------------------------------------------------------------


def test_scenes_of_a_batch_agree_and_no_scene_comes_twice(cache) -> None:
    counts = []
    for batch in batches(cache, recipe_of({"streams": 3}), 300):
        scenes = batch.scenes.tolist()
        assert len({len(cache[i].masks) for i in scenes}) == 1 and len(set(scenes)) == 3
        assert batch.references.shape[1] == len(cache[scenes[0]].masks)
        for x0, i in zip(batch.x0, scenes, strict=True):
            assert torch.equal(x0, cache[i].video.float())
        counts.append(batch.references.shape[1])
    for references, bucket in cache.buckets.items():  # 12, 6 and 3 examples of 21
        assert np.mean(np.equal(counts, references)) == pytest.approx(len(bucket) / 21, abs=0.1)


def test_every_scene_is_shown(cache) -> None:
    shown = torch.cat([batch.scenes for batch in batches(cache, recipe_of(), 60)])
    assert set(shown.tolist()) == set(range(21))


def test_a_bucket_smaller_than_a_batch_is_repeated(cache) -> None:
    for batch in batches(cache, recipe_of({"streams": 7}), 40):
        scenes, bucket = batch.scenes.tolist(), cache.buckets[batch.references.shape[1]]
        counts = [scenes.count(i) for i in bucket.tolist()]
        assert max(counts) - min(counts) <= 1 and sum(counts) == 7


def test_subjects_are_shuffled_and_words_and_pictures_stay_together(cache) -> None:
    orders: dict[int, set[tuple[int, ...]]] = {}
    for batch in batches(cache, recipe_of(), 120):
        for s, i in enumerate(batch.scenes.tolist()):
            example = cache[i]
            order = [found(reference, example.references[0]) for reference in batch.references[s]]
            orders.setdefault(i, set()).add(tuple(order))
            assert order[: example.lone] == list(range(example.lone))
            sizes, rest = [], order[example.lone :]
            edges = np.cumsum([example.lone, *example.subjects]).tolist()
            members = {a: list(range(a, b)) for a, b in zip(edges, edges[1:], strict=False)}
            while rest:  # a subject begins with its first picture, and keeps its order
                whole = members.pop(rest[0])
                assert rest[: len(whole)] == whole
                sizes.append(len(whole))
                rest = rest[len(whole) :]
            assert not members
            layout = SceneLayout(
                video_frames=2, height=2, width=3, lone=example.lone, subjects=tuple(sizes)
            )
            wanted = word_template(example.masks[order], layout)
            assert np.array_equal(batch.template[s].numpy(), wanted)
            alone = structure_of([layout], CONFIG.head_dim)
            assert torch.equal(batch.structure.rope_references[:, s], alone.rope_references[:, 0])
            assert torch.equal(batch.structure.rope_video, alone.rope_video)
    sizes = {i: len(cache[i].subjects) for i in orders}
    assert all(len(orders[i]) == {0: 1, 1: 1, 2: 2, 3: 6}[sizes[i]] for i in orders)


def test_text_is_padded_with_zeros(cache) -> None:
    for batch in batches(cache, recipe_of()):
        for text, i in zip(batch.text, batch.scenes.tolist(), strict=True):
            rows = len(cache[i].text)
            assert torch.equal(text[:rows], cache[i].text.float()) and not text[rows:].any()


def test_dropped_text_is_the_negative_prompt_and_changes_nothing_else(cache) -> None:
    dropped = []
    pairs = zip(
        batches(cache, recipe_of(text_dropout=0.4), 200), batches(cache, recipe_of(), 200),
        strict=True,
    )  # fmt: skip
    null = torch.zeros(CONFIG.text_len, 64)
    null[: len(cache.null_text)] = cache.null_text.float()
    for some, none in pairs:
        for name in ("x0", "noise", "time", "references", "template", "scenes"):
            assert torch.equal(getattr(some, name), getattr(none, name)), name
        for text, kept in zip(some.text, none.text, strict=True):
            dropped.append(torch.equal(text, null))
            assert dropped[-1] or torch.equal(text, kept)
    assert np.mean(dropped) == pytest.approx(0.4, abs=0.07)


def test_augmented_variants_are_as_likely_as_asked(cache) -> None:
    chosen = []
    for batch in batches(cache, recipe_of({"augmented": 0.6}), 150):
        for references, i in zip(batch.references, batch.scenes.tolist(), strict=True):
            if len(references):
                looks = cache[i].references.flatten(0, 1)
                which = [found(reference, looks) // len(references) for reference in references]
                assert len(set(which)) == 1, "one variant a scene"
                chosen.append(which[0])
    shares = np.bincount(chosen, minlength=3) / len(chosen)
    assert shares == pytest.approx([0.4, 0.3, 0.3], abs=0.07)


def test_a_stage_may_take_the_first_latent_frames_only(cache) -> None:
    for batch in batches(cache, recipe_of({"latent_frames": 1}), 5):
        assert batch.x0.shape[2] == batch.noise.shape[3] == batch.structure.rope_video.shape[1] == 1
        for x0, i in zip(batch.x0, batch.scenes.tolist(), strict=True):
            assert torch.equal(x0, cache[i].video[:, :1].float())


def test_tokens_are_counted(cache) -> None:
    batch = batches(cache, recipe_of(), 1)[0]
    assert batch.tokens == 4 * 3 * 2 * 6 + 4 * batch.references.shape[1] * 6


# -- noise and times ------------------------------------------------------------------------------


def test_noise_is_normal_and_never_the_same(cache) -> None:
    noise = torch.stack([batch.noise for batch in batches(cache, recipe_of(), 60)])
    assert noise.shape == (60, 4, 3, 16, 2, 4, 6) and noise.dtype == torch.float32
    rows = noise.flatten(3).flatten(0, 2)  # one for every step, stream and seed
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert float(correlation.abs().max()) < 0.25  # 768 numbers each: a standard error of 0.036
    assert float(noise.mean().abs()) < 0.005 and float(noise.std()) == pytest.approx(1, abs=0.005)


def times(cache, **options) -> np.ndarray:
    recipe = recipe_of({"streams": 12, "seeds": 1}, times=Times(**options))
    return torch.cat([batch.time for batch in batches(cache, recipe, 150)]).double().numpy()


def distance(sample: np.ndarray, distribution) -> float:
    """Of Kolmogorov and Smirnov; 1,800 draws stay below 0.04 with probability 0.99."""
    ordered = np.sort(sample)
    steps = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(np.abs(steps - np.vectorize(distribution)(ordered)).max())


def normal(t: float) -> float:
    """Share of sigmoid(normal) * 1000 below t."""
    logit = np.log(t / (1000 - t))
    return float(0.5 * (1 + torch.erf(torch.tensor(logit / 2**0.5, dtype=torch.float64))))


def test_times_are_uniform_and_not_truncated(cache) -> None:
    drawn = times(cache)
    assert distance(drawn, lambda t: t / 1000) < 0.04
    assert distance(drawn, normal) > 0.08, "control"
    assert 0 <= drawn.min() and drawn.max() < 1000 and (drawn % 1 != 0).mean() > 0.99


def test_other_times(cache) -> None:
    integers = times(cache, sampling="integer")
    assert (integers % 1 == 0).all() and distance(integers, lambda t: (t + 1) / 1000) < 0.04
    assert distance(times(cache, sampling="logit-normal"), normal) < 0.04
    # t' = r t / (1 + (r - 1) t) with r = 3, so t = t' / (3 - 2 t')
    shifted = times(cache, shift="fixed", scale=3.0)
    assert distance(shifted, lambda t: (t / 1000) / (3 - 2 * t / 1000)) < 0.04
    assert distance(shifted, lambda t: t / 1000) > 0.1, "control"


# -- ablations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("relations", ["lone", "lone-interleaved"])
def test_without_relations_every_reference_stands_alone(cache, relations: str) -> None:
    seen: dict[int, set[tuple[int, ...]]] = {}
    for batch in batches(cache, recipe_of(relations=relations), 120):
        assert batch.structure.group_index.shape[2] == 1, "nobody sees another"
        for s, i in enumerate(batch.scenes.tolist()):
            example = cache[i]
            order = [found(reference, example.references[0]) for reference in batch.references[s]]
            seen.setdefault(i, set()).add(tuple(order))
            wanted = example.masks[order].astype(np.float32)
            assert np.array_equal(batch.template[s].numpy(), wanted), "its own words only"
    two_and_two = {i: orders for i, orders in seen.items() if cache[i].subjects == (2, 2)}
    wanted = {(0, 1, 2, 3), (2, 3, 0, 1)}
    if relations == "lone-interleaved":
        wanted = {(0, 2, 1, 3), (2, 0, 3, 1)}
    assert two_and_two and all(orders == wanted for orders in two_and_two.values())
    uneven = {i: orders for i, orders in seen.items() if cache[i].subjects == (2, 1)}
    wanted = {(0, 1, 2, 3), (0, 3, 1, 2)}  # a lone one, then subjects {1, 2} and {3}
    if relations == "lone-interleaved":
        wanted = {(0, 1, 3, 2), (0, 3, 1, 2)}
    assert uneven and all(orders == wanted for orders in uneven.values())


def test_words_switched_off(cache) -> None:
    for batch, full in zip(
        batches(cache, recipe_of(words=False), 9), batches(cache, recipe_of(), 9), strict=True
    ):
        assert not batch.template.any() and batch.template.shape == full.template.shape
        assert torch.equal(batch.references, full.references)


def test_positions_switched_off(cache) -> None:
    recipe = recipe_of(relational_positions=False)
    for batch in batches(cache, recipe, 9):
        for s, i in enumerate(batch.scenes.tolist()):
            layout = place(cache[i], recipe, (2, 2, 3), (0, 0, 1, s))[1]
            slots = dataclasses.replace(layout, lone=layout.references, subjects=())
            alone = structure_of([slots], CONFIG.head_dim).rope_references
            assert torch.equal(batch.structure.rope_references[:, s], alone[:, 0])


def test_references_that_see_the_video_have_a_stream_for_every_noise(cache) -> None:
    shared = batches(cache, recipe_of(), 9)
    for own, one in zip(
        batches(cache, recipe_of(relational_visibility=False), 9), shared, strict=True
    ):
        assert own.noise.shape[:2] == (12, 1) and one.noise.shape[:2] == (4, 3)
        assert torch.equal(own.noise[:, 0], one.noise.flatten(0, 1))
        for name in ("x0", "time", "text", "references", "template", "scenes"):
            tripled = getattr(one, name).repeat_interleave(3, 0)
            assert torch.equal(getattr(own, name), tripled), name
        frames = 2 + own.references.shape[1]
        assert own.structure.group_index.shape[0] == 12
        if own.references.shape[1]:
            assert own.structure.group_index[0].tolist() == [list(range(frames))]


# -- a function of seed and step ------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step(cache) -> None:
    recipe = recipe_of({"augmented": 0.5}, text_dropout=0.3)
    forwards = batches(cache, recipe, 8)
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state()
    for step in (6, 2, 7):
        again = batch_at(recipe, recipe.stages[0], LatentCache(cache.folder), step)
        pairs = zip(tensors(again), tensors(forwards[step]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(torch.get_rng_state(), state)
    other = batches(cache, dataclasses.replace(recipe, seed=1), 8)
    for batches_ in (forwards, other):
        assert len({batch.noise.sum().item() for batch in batches_}) == 8
    assert all(not torch.equal(a.time, b.time) for a, b in zip(forwards, other, strict=True))


def test_parts_of_a_batch_are_its_slices(cache) -> None:
    recipe = recipe_of({"augmented": 0.5}, text_dropout=0.3)
    for step in range(8):
        whole = batch_at(recipe, recipe.stages[0], cache, step)
        parts = [batch_at(recipe, recipe.stages[0], cache, step, (k, 2)) for k in range(2)]
        for name in Batch._fields:
            if name != "structure":
                joined = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(joined, getattr(whole, name)), name
        ropes = [part.structure.rope_references for part in parts]
        assert torch.equal(torch.cat(ropes, 1), whole.structure.rope_references)


def test_streams_that_cannot_be_divided_are_refused(cache) -> None:
    recipe = recipe_of()
    with pytest.raises(LumosXError, match="4 streams over 3 processes; give a multiple of 3"):
        batch_at(recipe, recipe.stages[0], cache, 0, (0, 3))

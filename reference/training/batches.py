"""The batch of every step, as a pure function of the recipe's seed and the step.

No iterator has a state, so a run that was killed goes on with the batches it would have had. Every
choice has its own random stream: how many processes share a batch changes nothing in it.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.mechanisms.lumosx.binding import word_template
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure, structure_of
from lumosx_rt.reference.sampling.flow import shift_time
from lumosx_rt.reference.sampling.schedules import TIMES
from lumosx_rt.reference.training.latents import Example, LatentCache
from lumosx_rt.reference.training.recipe import Recipe, Stage

_CHOICES, _ORDER, _NOISE = range(3)  # random streams of one step


class Batch(NamedTuple):
    """What one training step reads.

    x0: float32 [streams, channels, frames, rows, columns]. noise: [streams, seeds, ...] like it.
    time: float32 [streams], 0..1000, one for all seeds of a stream.
    text, references, template, structure: the model's inputs (`LumosX.forward`).
    scenes: int64 [streams], the examples they come from.
    """

    x0: Tensor
    noise: Tensor
    time: Tensor
    text: Tensor
    references: Tensor
    template: Tensor
    structure: Structure
    scenes: Tensor

    @property
    def tokens(self) -> int:
        """Video tokens of all seeds, and reference tokens, in one forward."""
        frame = self.structure.bias_tiles.numel()
        streams, seeds, _, frames = self.noise.shape[:4]
        return streams * (seeds * frames + self.references.shape[1]) * frame

    def to(self, device: torch.device | str) -> "Batch":
        return Batch._make(part.to(device) for part in self)


def batch_at(
    recipe: Recipe, stage: Stage, cache: LatentCache, step: int, part: tuple[int, int] = (0, 1)
) -> Batch:
    """Return the batch of a step, counted from 0 over all stages.

    All its scenes have the same number of references, a number as likely as there are examples of
    it. Subjects come in a random order, their references in the given one. Where references see
    the video, every noise has a stream of its own. part: (which, of how many) equal slices of the
    scenes. Raises LumosXError if they cannot be divided so.
    """
    which, parts = part
    if stage.streams % parts:
        raise BadInput(
            f"stage '{stage.name}': {stage.streams} streams over {parts} processes; give a "
            f"multiple of {parts}"
        )
    rng = np.random.default_rng((recipe.seed, step, _CHOICES))
    scenes = _scenes(rng, cache, stage.streams)
    time = _times(rng, recipe, stage.streams)
    augmented = rng.random(stage.streams) < stage.augmented
    variants = np.where(augmented, rng.integers(1, max(recipe.variants, 1) + 1, stage.streams), 0)
    dropped = rng.random(stage.streams) < recipe.text_dropout

    mine = np.array_split(np.arange(stage.streams), parts)[which].tolist()
    frames = stage.latent_frames or cache.size.latent[0]
    examples = [cache[scenes[s]] for s in mine]
    placed = [
        place(example, recipe, (frames, *cache.size.grid[1:]), (recipe.seed, step, _ORDER, s))
        for s, example in zip(mine, examples, strict=True)
    ]
    copies = 1 if recipe.relational_visibility else stage.seeds

    def stacked(tensors: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).repeat_interleave(copies, 0)

    triples = list(zip(mine, examples, placed, strict=True))
    x0 = stacked(example.video[:, :frames].float() for example in examples)
    shape = (stage.seeds, *x0.shape[1:])
    noise = torch.stack([_noise((recipe.seed, step, _NOISE, s), shape) for s in mine])
    return Batch(
        x0,
        noise if copies == 1 else noise.flatten(0, 1).unsqueeze(1),
        stacked(time[s] for s in mine),
        stacked(
            _padded(cache.null_text if dropped[s] else example.text, cache.text_len)
            for s, example, _ in triples
        ),
        stacked(e.references[variants[s]][order].float() for s, e, (order, _) in triples),
        stacked(_template(e.masks[order], lay, recipe.words) for _, e, (order, lay) in triples),
        _structure(
            tuple(layout for _, layout in placed for _ in range(copies)), recipe.model.head_dim
        ),
        torch.from_numpy(scenes[mine]).repeat_interleave(copies),
    )


def place(
    example: Example, recipe: Recipe, grid: tuple[int, int, int], seed: tuple[int, ...]
) -> tuple[list[int], SceneLayout]:
    """Return the order of an example's references, and the layout in which they stand so.

    grid: latent frames, token rows, token columns. Subjects are shuffled against the caption.
    """
    edges = np.cumsum([example.lone, *example.subjects]).tolist()
    subjects = [range(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    shuffle = np.random.default_rng(seed).permutation(len(subjects))
    subjects = [subjects[g] for g in shuffle]
    members = [r for subject in subjects for r in subject]
    lone, sizes = example.lone, tuple(map(len, subjects))
    if recipe.relations == "lone-interleaved":
        members = [r for rank in zip_longest(*subjects) for r in rank if r is not None]
    if recipe.relations != "full":
        lone, sizes = example.lone + len(members), ()
    layout = SceneLayout(
        video_frames=grid[0],
        height=grid[1],
        width=grid[2],
        lone=lone,
        subjects=sizes,
        relational_positions=recipe.relational_positions,
        relational_visibility=recipe.relational_visibility,
    )
    return [*range(example.lone), *members], layout


def _scenes(rng: np.random.Generator, cache: LatentCache, streams: int) -> NDArray[np.int64]:
    """Examples of one bucket, none twice; a bucket smaller than a batch is repeated."""
    buckets = list(cache.buckets.values())
    bucket = buckets[rng.choice(len(buckets), p=[len(b) / len(cache) for b in buckets])]
    rounds = -(-streams // len(bucket))
    return np.concatenate([rng.permutation(bucket) for _ in range(rounds)])[:streams]


def _times(rng: np.random.Generator, recipe: Recipe, streams: int) -> Tensor:
    """Training times, float32 [streams] (docs/spec.md#training)."""
    times = recipe.times
    if times.sampling == "logit-normal":
        time = torch.from_numpy(rng.standard_normal(streams, np.float32)).sigmoid() * TIMES
    else:
        time = torch.from_numpy(rng.random(streams, np.float32)) * TIMES
    if times.sampling == "integer":
        time = time.floor()
    if times.shift is None:
        return time
    size = recipe.size
    return shift_time(
        time,
        height=size.height,
        width=size.width,
        num_frames=size.frames,
        scale=times.scale,
        mode=times.shift,
    )


def _noise(seed: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return torch.randn(shape, generator=torch.Generator().manual_seed(state))


def _padded(text: Tensor, text_len: int) -> Tensor:
    """Embeddings of real tokens with zero rows after them: float32 [text_len, text_dim]."""
    padded = torch.zeros(text_len, text.shape[1])
    padded[: len(text)] = text
    return padded


def _template(masks: NDArray[np.bool_], layout: SceneLayout, words: bool) -> Tensor:
    return torch.from_numpy(word_template(masks, layout)) * float(words)


@lru_cache(maxsize=16)
def _structure(layouts: tuple[SceneLayout, ...], head_dim: int) -> Structure:
    return structure_of(layouts, head_dim)

"""Pictures of the drawn world for its VAE to learn from: frames of clips, and references on paper.

What a step shows is a function of (seed, step). Held-out looks never occur.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.looks import BACKDROPS, FACES, KINDS, LOOKS, THINGS
from lumosx_rt.reference.world.story import story

CROP = 72  # columns of a training picture


class Pictures:
    """A pool of clips and references, and the batches of every step cut from it."""

    def __init__(self, seed: int, clips: int = 800, papers: int = 6000) -> None:
        chance = np.random.default_rng([seed, 0])
        self.seed = seed
        self.clips = np.stack(
            [draw.frames_of(story(s, 1 + s % 3)) for s in range(clips)]
        )  # [clips, frames, rows, columns, 3]
        self.papers = np.stack([_paper(chance) for _ in range(papers)])

    def images(self, step: int, count: int) -> Tensor:
        """[count, 3, 1, rows, CROP] in [-1, 1]: frames of clips, and references on paper."""
        chance = np.random.default_rng([self.seed, 1, step])
        batch = []
        for n in range(count):
            if n % 5 < 3:
                clip = self.clips[chance.integers(len(self.clips))]
                batch.append(_crop(clip[chance.integers(len(clip))], chance, 0, 72))
            else:
                batch.append(_crop(self.papers[chance.integers(len(self.papers))], chance, 16, 56))
        return _tensor(np.stack(batch)[:, None])

    def moving(self, step: int, count: int) -> Tensor:
        """[count, 3, frames, rows, CROP] in [-1, 1]."""
        chance = np.random.default_rng([self.seed, 2, step])
        batch = [
            _crop(self.clips[chance.integers(len(self.clips))], chance, 0, 72) for _ in range(count)
        ]
        return _tensor(np.stack(batch))


def _paper(chance: np.random.Generator) -> NDArray[np.uint8]:
    def number(span: range) -> int:
        return int(chance.integers(span.start, span.stop))

    which = int(chance.integers(6))
    if which == 0:
        return draw.to_uint8(draw.backdrop_picture(BACKDROPS[number(BACKDROPS.training)]))
    if which == 1:
        return draw.paper(draw.thing_sprite(THINGS[number(THINGS.training)]))
    if which == 2 or which == 3:
        return draw.paper(draw.face_sprite(FACES[number(FACES.training)]))
    space = LOOKS[KINDS[int(chance.integers(3))]]
    return draw.paper(draw.look_sprite(space[number(space.training)]))


def _crop(
    frames: NDArray[np.uint8], chance: np.random.Generator, first: int, last: int
) -> NDArray[np.uint8]:
    left = int(chance.integers(first, last + 1))
    return frames[..., left : left + CROP, :]


def _tensor(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.moveaxis(frames, -1, 1).copy()).float() / 127.5 - 1

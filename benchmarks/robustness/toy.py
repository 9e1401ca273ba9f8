"""A source of noise for the tests of training: every example another, and each pixel its own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.encoders.random import random_components
from lumosx_rt.reference.encoders.umt5 import TextEncoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.reference.scenes.video_size import VideoSize

SIZE = VideoSize(frames=5, height=32, width=48)
CONFIG = LumosXConfig(dim=24, ffn_dim=48, num_heads=2, num_layers=3, text_dim=64, text_len=48)
KINDS = [(1, (2, 1)), (2, ()), (0, (2, 2)), (1, (1, 1, 1)), (2, (2,)), (0, (2,)), (0, ())]
WORDS = ("sea", "box", "man", "hat", "cat", "tie", "fox")


@dataclass
class Toy:
    """Examples whose numbers of lone references and subjects go round through `kinds`."""

    count: int = 12
    size: VideoSize = SIZE
    kinds: tuple[tuple[int, tuple[int, ...]], ...] = tuple(KINDS)
    name: str = "toy"
    fingerprint: str = "first"
    asked: int = 0

    def __len__(self) -> int:
        return self.count

    def scene(self, i: int, variant: int = 0) -> Scene:
        rng = np.random.default_rng((i, variant))
        words = iter(np.random.default_rng(i).permutation(WORDS).tolist())
        said: list[str] = []

        def reference() -> Reference:
            said.append(next(words))
            pixels = rng.integers(0, 256, (self.size.height, self.size.width, 3), np.uint8)
            return Reference(said[-1], Image.fromarray(pixels))

        lone, sizes = self.kinds[i % len(self.kinds)]
        background = reference() if lone else None
        objects = tuple(reference() for _ in range(lone - 1))
        subjects = tuple(Subject(tuple(reference() for _ in range(n))) for n in sizes)
        caption = f"{i}: " + " and ".join(said)
        return Scene(f"toy{i}", caption, background, objects, subjects)

    def item(self, i: int) -> tuple[Scene, NDArray[np.uint8]]:
        self.asked += 1
        shape = (self.size.frames, self.size.height, self.size.width, 3)
        clip = np.random.default_rng((i, 99)).integers(0, 256, shape, np.uint8)
        return self.scene(i), clip


@dataclass
class OwnLooks(Toy):
    """A toy that makes its augmented pictures itself."""

    def augmented(self, i: int, variant: int) -> Scene:
        return self.scene(i, variant)


def encoders(seed: int = 0) -> tuple[TextEncoder, VideoAutoencoder]:
    text_encoder, tokenizer, vae = random_components(seed)
    return TextEncoder(text_encoder, tokenizer, CONFIG.text_len), VideoAutoencoder(vae)

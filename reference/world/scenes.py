"""Stories as scenes: what a person would write, with the clip that it should become."""

import hashlib
import inspect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lumosx_rt.reference.scenes.clips import write_clip
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.reference.world import draw, looks, story
from lumosx_rt.reference.world.story import Story

FPS = 8
CLIP_FILE = "video.mp4"


def scene_of(told: Story) -> Scene:
    """A story as a scene; its people come in an order of their own, not in the caption's."""
    order = list(told.people)
    random.Random(f"{told.name} order").shuffle(order)
    things = []
    if told.thing is not None and told.thing_word is not None:
        things.append(Reference(told.thing_word, _paper(draw.thing_sprite(told.thing))))
    backdrop = Image.fromarray(draw.to_uint8(draw.backdrop_picture(told.backdrop)))
    return Scene(
        name=told.name,
        caption=told.caption,
        background=Reference(told.place, backdrop),
        objects=tuple(things),
        subjects=tuple(
            Subject(
                (
                    Reference(person.word, _paper(draw.face_sprite(person.face))),
                    *(
                        Reference(a.word, _paper(draw.look_sprite(a.look)))
                        for a in person.attributes
                    ),
                )
            )
            for person in order
        ),
    )


def write_story(told: Story, folder: Path) -> Path:
    """Write a prompt folder with its target clip, `video.mp4`; return its path.

    Raises LumosXError if the folder exists already.
    """
    scene_of(told).save(folder)
    write_clip(folder / CLIP_FILE, draw.frames_of(told), fps=FPS)
    return folder


@dataclass(frozen=True)
class WorldSource:
    """Stories to train on or to be judged by, drawn when they are asked for.

    members: (seed, people) of each; held_out: with looks that training never shows; frames: the
    first ones of every clip.
    """

    members: Sequence[tuple[int, int]]
    held_out: bool = False
    frames: int = draw.FRAMES
    name: str = "world"

    def __len__(self) -> int:
        return len(self.members)

    @property
    def fingerprint(self) -> str:
        """Changes with the members, and with the code that draws them."""
        digest = hashlib.sha256(repr((list(self.members), self.held_out, self.frames)).encode())
        for module in (looks, story, draw):
            digest.update(inspect.getsource(module).encode())
        return digest.hexdigest()

    def story(self, i: int) -> Story:
        return story.story(*self.members[i], held_out=self.held_out)

    def item(self, i: int) -> tuple[Scene, NDArray[np.uint8]]:
        """A scene and its clip, uint8 [frames, height, width, 3]."""
        told = self.story(i)
        return scene_of(told), draw.frames_of(told)[: self.frames]


def _paper(sprite: draw.Pixels) -> Image.Image:
    return Image.fromarray(draw.paper(sprite))

"""How the tiny LumosX is made from nothing, on two CPU cores in about three hours.

    text       a tokenizer and a text encoder, on captions                    folder/text
    pictures   the VAE, on frames and references; clips, what moves            folder/vae
    one        the transformer, on single people that stand still             folder/one
    two        on pairs                                                       folder/two
    many       on clips of one to three people                                folder/many

Each part starts from the one before, is found again if it is finished, and goes on where it was
killed. The result is a bundle with all four components.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lumosx_rt.reference.backbones.config import PRESETS
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.encoders.single_frame import planar
from lumosx_rt.reference.encoders.umt5 import load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import load_vae
from lumosx_rt.reference.places import held
from lumosx_rt.reference.progress import Progress, Report, quiet
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.training.pipeline import make_bundle
from lumosx_rt.reference.training.recipe import Recipe, Stage
from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.scenes import FPS, WorldSource
from lumosx_rt.reference.world.story import story
from lumosx_rt.reference.world.train.autoencoder import Lesson, new_autoencoder, train_autoencoder
from lumosx_rt.reference.world.train.captions import (
    TEXT_LEN,
    new_text_encoder,
    train_text_encoder,
    train_tokenizer,
)
from lumosx_rt.reference.world.train.pictures import Pictures

CLIP = VideoSize(draw.FRAMES, draw.HEIGHT, draw.WIDTH)
STILL = replace(CLIP, frames=1)
DEFAULTS = {
    "frames": draw.FRAMES, "height": draw.HEIGHT, "width": draw.WIDTH, "fps": FPS,
    "steps": 12, "shift": 3.0, "guidance": 1.0,
    "trained_for": "the drawn world of reference/world alone; photographs become coloured blobs",
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """A stretch of the transformer's training: scenes of so many people, so many of each."""

    name: str
    scenes: dict[int, int]
    """People in a scene -> how many scenes."""
    steps: int
    still: bool = False
    """The first frame alone."""
    streams: int = 8
    seeds: int = 4
    learning_rate: float = 2.5e-3
    decay: float = 0.25

    @property
    def source(self) -> WorldSource:
        members = [(s, people) for people, count in self.scenes.items() for s in range(count)]
        random.Random(0).shuffle(members)
        return WorldSource(members, frames=1 if self.still else draw.FRAMES, name=self.name)

    def recipe(self, components: Path | None, start_from: Path | None, **changes: Any) -> Recipe:
        stage = Stage(
            name=self.name,
            steps=self.steps,
            data=self.source,
            streams=self.streams,
            seeds=self.seeds,
            learning_rate=self.learning_rate,
        )
        options: dict[str, Any] = {
            "model": replace(PRESETS["tiny"], text_len=TEXT_LEN),
            "size": STILL if self.still else CLIP,
            "stages": (stage,),
            "components": components,
            "start_from": start_from,
            "decay": self.decay,
            "weight_decay": 0.0,
            "bf16": True,
        }
        return Recipe(**(options | changes))


@dataclass(frozen=True)
class Course:
    """Everything that the tiny LumosX learns, and for how long."""

    captions: int = 400
    """Steps of the text encoder."""
    lessons: tuple[Lesson, Lesson] = (Lesson("pictures", 1900), Lesson("clips", 1200))
    """Of the VAE."""
    phases: tuple[Phase, ...] = (
        Phase("one", {1: 800}, 1200, still=True),
        Phase("two", {2: 1400}, 1600, still=True, decay=0.0),
        Phase("many", {1: 700, 2: 1400, 3: 600}, 2400, streams=6),
    )

    def summary(self) -> str:
        """What is done in which order, in one line."""
        parts = [("text", self.captions), *((one.shown, one.steps) for one in self.lessons)]
        parts += [(phase.name, phase.steps) for phase in self.phases]
        return ", ".join(f"{name} {steps:,} steps" for name, steps in parts)

    def run(
        self,
        folder: Path,
        *,
        processes: int = 2,
        report: Report = lambda line: None,
        progress: Progress = quiet,
    ) -> Path:
        """Do what is not done yet; return the finished bundle, folder/bundle.

        processes: workers that make latents. Raises LumosXError as `make_bundle` does.
        """
        if (folder / "bundle").exists():
            return folder / "bundle"
        with held(folder, "training"):
            return self._run(folder, processes, report, progress)

    def _run(self, folder: Path, processes: int, report: Report, progress: Progress) -> Path:
        report(self.summary())
        components = self.components(folder, progress)
        start: Path | None = None
        for phase in self.phases:
            recipe = phase.recipe(components, start)
            options: Any = {"processes": processes, "report": report, "progress": progress}
            start = make_bundle(recipe, folder / phase.name, folder / "latents", **options)
        assert start is not None
        text_encoder, vae = load_text_encoder(components, TEXT_LEN), load_vae(components)
        save_bundle(
            folder / "bundle",
            transformer=load_transformer(start),
            text_encoder=text_encoder.model,
            tokenizer=text_encoder.tokenizer,
            vae=vae.model,
            defaults=DEFAULTS,
            half=True,
        )
        return folder / "bundle"

    def components(self, folder: Path, progress: Progress) -> Path:
        """Text encoder, tokenizer and VAE as a bundle."""
        bundle = folder / "components"
        if not bundle.exists():
            self._text(folder / "text", progress)
            text = load_text_encoder(folder / "text", TEXT_LEN)
            vae = self._vae(folder / "vae", progress)
            save_bundle(bundle, text_encoder=text.model, tokenizer=text.tokenizer, vae=vae)
        return bundle

    def _text(self, folder: Path, progress: Progress) -> None:
        if folder.exists():
            return
        tokenizer = train_tokenizer([story(i % 4000, 1 + i % 4).caption for i in range(4000)])
        model = new_text_encoder()
        train_text_encoder(
            model,
            tokenizer,
            steps=self.captions,
            progress=lambda step, m: progress("text", step + 1, self.captions, m),
        )
        save_bundle(folder, text_encoder=model, tokenizer=tokenizer)

    def _vae(self, folder: Path, progress: Progress) -> Any:
        model = new_autoencoder()
        for lesson in self.lessons:
            train_autoencoder(
                model,
                lesson,
                folder / f"{lesson.shown}.safetensors",
                lambda step, m, lesson=lesson: progress(lesson.shown, step + 1, lesson.steps, m),  # type: ignore[misc]
            )
        return normalised(model.requires_grad_(False).eval())


@torch.no_grad()
def normalised(vae: Any) -> Any:
    """Set what latents are divided by: a mean for each channel, one deviation for all.

    Whitening each channel would blow up those that say little.
    """
    with planar(vae):
        latents = vae._encode(Pictures(0, clips=60, papers=60).images(0, 200))
    latents = latents[:, : vae.config.z_dim]
    mean = latents.mean((0, 2, 3, 4))
    deviation = float((latents - mean.view(1, -1, 1, 1, 1)).std())
    vae.register_to_config(
        latents_mean=[float(f"{value:.4g}") for value in mean.tolist()],
        latents_std=[float(f"{deviation:.4g}")] * len(mean),
    )
    return vae


TINY = Course()

"""What makes the clips of a benchmark: an engine, the PyTorch reference of a bundle, or its VAE."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.artifact.manifest import MANIFEST, Manifest, read_manifest
from lumosx_rt.artifact.source import ENCODERS, CheckpointSource, encoders_of
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.builder.build import MAX_REFERENCES
from lumosx_rt.reference.checkpoints.bundle import find_bundle
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder, load_vae
from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import LIMITS
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy
from lumosx_rt.reference.scenes.images import to_unit
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.world import draw
from lumosx_rt.reference.world.scenes import scene_of
from lumosx_rt.reference.world.story import Story
from lumosx_rt.runtime.engine import Engine, load

MakeClip = Callable[[Story], NDArray[np.uint8]]
"""A story's clip: uint8 [frames, height, width, 3]."""


@dataclass(frozen=True)
class Sampling:
    """How clips are sampled; the noise is that of the scene's own seed."""

    steps: int = 12
    shift: float = 3.0
    guidance: float = 1.0
    frames: int = draw.FRAMES


@dataclass(frozen=True)
class Maker:
    """What makes clips, and what identifies it."""

    make_clip: MakeClip
    identity: dict[str, Any]


def sampled(
    path: Path,
    sampling: Sampling,
    components: Path | None = None,
    provider: Provider = "auto",
    trust: bool = False,
    lossy: Lossy = EXACT,
) -> Maker:
    """Clips by an engine directory, or by the PyTorch reference of a bundle.

    trust, lossy: as for `load`. Raises LumosXError for a path that is neither, and for shortcuts
    of the reference.
    """
    if (path / MANIFEST).is_file():
        # whether it is the reference's equal is what is being measured
        engine = load(
            path,
            components=components,
            provider=provider,
            trust=trust,
            unverified=True,
            lossy=lossy,
        )
    elif lossy:
        raise BadInput(f"lossy: {path} is no engine, and the reference takes no shortcuts")
    else:
        engine = reference_engine(path, components)
    manifest = engine.manifest
    identity = {
        "transformer": manifest.checkpoint["sha256"],
        "components": manifest.components,
        "precision": manifest.precision,
        "files": {name: record.sha256 for name, record in sorted(manifest.files.items())},
        **engine.backend.describe(),
        "sampling": asdict(sampling),
    }
    return Maker(by_engine(engine, sampling), identity)


def by_engine(engine: Engine, sampling: Sampling) -> MakeClip:
    """Clips as an engine samples them; a flat one is kept, to be judged as it is."""

    def make_clip(told: Story) -> NDArray[np.uint8]:
        return engine.vae.decode_frames_uint8(final_latents(engine, sampling, told))

    return make_clip


def final_latents(engine: Engine, sampling: Sampling, told: Story) -> Tensor:
    """Sample one scene; returns float32 [channels, frames, rows, columns]."""
    request = engine.prepare(
        scene_of(told),
        size=VideoSize(sampling.frames, draw.HEIGHT, draw.WIDTH),
        seeds=(told.seed,),
        steps=sampling.steps,
        shift=sampling.shift,
        guidance=sampling.guidance,
    )
    *_, last = engine.sample(request)
    return last.latents[0]


def vae_alone(path: Path, components: Path | None = None) -> Maker:
    """Target clips encoded and decoded: the best that any transformer could do with this VAE."""
    if (path / MANIFEST).is_file():
        bundle = encoders_of(read_manifest(path), path, components)
    else:
        bundle = find_bundle(components or path)
    identity = {"vae": bundle.require("vae").sha256, "torch": torch.__version__}
    return Maker(by_vae(load_vae(bundle)), identity)


def by_vae(vae: VideoAutoencoder) -> MakeClip:
    def make_clip(told: Story) -> NDArray[np.uint8]:
        pixels = torch.from_numpy(to_unit(draw.frames_of(told))).permute(3, 0, 1, 2)
        return vae.decode_frames_uint8(vae.encode(pixels[None]))

    return make_clip


def reference_engine(path: Path, components: Path | None = None) -> Engine:
    """Return the PyTorch reference of a bundle, used like an engine.

    components: where text encoder, tokenizer and VAE lie, if not in the bundle.
    Raises LumosXError where a part is missing.
    """
    try:
        source = CheckpointSource(find_bundle(path))
    except LumosXError as error:
        raise BadInput(f"{path} is no engine ({MANIFEST}); as a checkpoint: {error}") from None
    encoders = find_bundle(components) if components else source.bundle
    parts = {name: encoders.require(name).sha256 for name in ENCODERS}
    identity = source.identity()
    model = source.load()
    manifest = Manifest(
        model=asdict(model.config),
        checkpoint=identity,
        backend="eager",
        precision="fp32",
        device={"name": "cpu"},
        versions={},
        layouts={
            **{axis: list(LIMITS[axis]) for axis in ("frames", "height", "width", "seeds")},
            "references": [0, MAX_REFERENCES],
            "members": [1, MAX_REFERENCES],
        },
        defaults=source.defaults,
        components=parts,
    )
    return Engine(path, manifest, EagerBackend(model), components or path)

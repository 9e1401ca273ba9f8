"""The latents of a source on disk: what the model reads of its scenes and clips.

Latents, embeddings and word masks never change, so `build_cache` makes them once, in shards that
appear whole: a killed build goes on where it was. `LatentCache` maps them into memory.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumosx_rt.reference.encoders.umt5 import TextEncoder, load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder, load_vae
from lumosx_rt.reference.errors import BadInput, listing
from lumosx_rt.reference.files import look_at, read_json, replacing, write_atomically
from lumosx_rt.reference.mechanisms.lumosx.binding import word_masks
from lumosx_rt.reference.places import held, place_of, try_folder
from lumosx_rt.reference.scenes.images import to_unit
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT
from lumosx_rt.reference.training.augment import augment_scene
from lumosx_rt.reference.training.recipe import AugmentedSource, Recipe, Source

INDEX_FILE = "index.json"
NULL_FILE = "null.safetensors"
FORMAT = 1


class Example(NamedTuple):
    """What the model reads of one scene and its clip.

    video: float16 [channels, frames, rows, columns], latents. references: float16 [1 + variants,
    references, channels, rows, columns], the pictures themselves first. text: float16 [tokens,
    text_dim], the real tokens only. masks: bool [references, text_len], the tokens that spell each
    reference's word. lone: references that stand alone. subjects: references of each subject.
    """

    video: Tensor
    references: Tensor
    text: Tensor
    masks: NDArray[np.bool_]
    lone: int
    subjects: tuple[int, ...]


class LatentCache:
    """The latents of a source, memory-mapped: reading an example copies nothing."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open what `build_cache` made. Raises LumosXError if it is not there or not finished."""
        self.folder = Path(folder).absolute()
        if not (self.folder / INDEX_FILE).is_file():
            raise BadInput(f"latent cache '{self.folder}': not there; build it first")
        index = read_json(self.folder / INDEX_FILE)
        if index.get("format") != FORMAT:
            raise BadInput(
                f"latent cache '{self.folder}': format {index.get('format')}, this version reads "
                f"{FORMAT}; remove it, and build it again"
            )
        self.made_of: dict[str, Any] = index["made_of"]
        self.size = VideoSize(**self.made_of["size"])
        self.text_len, self.variants = self.made_of["text_len"], self.made_of["variants"]
        shards = _shards(self.folder, index["examples"], self.made_of["shard_examples"])
        missing = sum(not shard.is_file() for shard in shards)
        if missing:
            raise BadInput(
                f"latent cache '{self.folder}': {missing} of {len(shards)} shards are missing; "
                "build it again, it goes on where it was"
            )
        look_at(self.folder / NULL_FILE, "latents", ("safetensors",))
        self.null_text = load_file(self.folder / NULL_FILE)["text"]
        self._examples = [e for shard in shards for e in _read_shard(shard)]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> Example:
        return self._examples[i]

    @cached_property
    def buckets(self) -> dict[int, NDArray[np.int64]]:
        """Number of references -> the examples that have so many."""
        counts = np.array([len(example.masks) for example in self._examples])
        return {int(n): np.flatnonzero(counts == n) for n in np.unique(counts)}

    def must_fit(self, recipe: Recipe, source: Source) -> None:
        """Raise LumosXError if it is not a cache for this recipe and this source."""
        problems = [
            f"its {what} is {got}, the recipe's is {wanted}"
            for what, got, wanted in (
                ("source", self.made_of["source"], source.fingerprint),
                ("size", self.size, recipe.size),
                ("text length", self.text_len, recipe.model.text_len),
                ("text width", self.null_text.shape[1], recipe.model.text_dim),
                ("number of latent channels", self[0].video.shape[0], recipe.model.in_dim),
            )
            if got != wanted
        ]
        if self.variants < recipe.variants:
            problems.append(f"it has {self.variants} variants, the recipe wants {recipe.variants}")
        if problems:
            remedy = "remove it, and build it again"
            raise BadInput(listing(f"latent cache '{self.folder}' ({remedy})", problems))


def build_cache(
    folder: str | os.PathLike[str],
    source: Source,
    size: VideoSize,
    text_encoder: TextEncoder,
    vae: VideoAutoencoder,
    *,
    variants: int = 0,
    strength: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    processes: int = 1,
    shard_examples: int = 64,
) -> LatentCache:
    """Make the latent cache of a source, or what is missing of it, and open it.

    variants: augmented variants of each scene's references, of this `strength`. progress: (examples
    done, examples in all). processes: single-threaded workers, each with its own copy of the
    encoders. shard_examples: how many of them are lost when a build is killed, at most. Raises
    LumosXError for a folder that holds another cache, and for examples that are not of `size` or
    whose words bind nothing.
    """
    folder = place_of(folder)
    made_of = {
        "source": source.fingerprint,
        "size": asdict(size),
        "variants": variants,
        "strength": strength if variants else None,
        "text_len": text_encoder.text_len,
        "text_encoder": _digest(text_encoder.model),
        "tokenizer": _tokenizer_digest(text_encoder),
        "vae": _digest(vae.model),
        "negative_prompt": NEGATIVE_PROMPT,
        "shard_examples": shard_examples,
    }
    index = {"format": FORMAT, "examples": len(source), "made_of": made_of}
    job = _Job(folder, source, size, text_encoder, vae, variants, strength, shard_examples)
    if os.path.lexists(folder / INDEX_FILE):
        _must_be(folder, index)
        if not job.todo():
            return LatentCache(folder)  # without a lock: it is only read
    with held(folder, "build of latents"):
        try_folder(folder)
        if not os.path.lexists(folder / INDEX_FILE):
            _begin(folder, index, text_encoder)
        todo = job.todo()
        done = len(source) - sum(len(job.numbers(k)) for k in todo)
        for k in _carried_out(job, todo, processes):
            done += len(job.numbers(k))
            progress(done, len(source))
    return LatentCache(folder)


def _must_be(folder: Path, index: dict[str, Any]) -> None:
    """Raise LumosXError for a folder that holds another cache."""
    found = read_json(folder / INDEX_FILE)
    if found != index:
        old = found.get("made_of", {})
        changed = [name for name, value in index["made_of"].items() if old.get(name) != value]
        raise BadInput(
            f"latent cache '{folder}' was made with another "
            f"{', '.join(changed) or 'format'}; remove it, or give another folder"
        )


def _begin(folder: Path, index: dict[str, Any], text_encoder: TextEncoder) -> None:
    null = text_encoder.encode(NEGATIVE_PROMPT)[: _real_tokens(text_encoder, NEGATIVE_PROMPT)]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / NULL_FILE) as file:
        save_file({"text": null.cpu().half().contiguous()}, file)
    write_atomically(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def prepare_caches(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[str, int, int], None] = lambda source, done, total: None,
    processes: int = 1,
) -> dict[str, LatentCache]:
    """Return the caches of a recipe's sources by name, in folder/<source>, built where needed.

    The encoders are those of `recipe.components`. Raises LumosXError as `build_cache` does, and
    where there are no encoders and a cache is not finished.
    """
    caches: dict[str, LatentCache] = {}
    if recipe.components is None:
        return {name: LatentCache(Path(folder) / name) for name in recipe.sources}
    text_encoder = load_text_encoder(recipe.components, recipe.model.text_len)
    vae = load_vae(recipe.components)
    for name, source in recipe.sources.items():
        caches[name] = build_cache(
            Path(folder) / name,
            source,
            recipe.size,
            text_encoder,
            vae,
            variants=recipe.variants,
            strength=recipe.augment_strength,
            progress=lambda done, total, name=name: progress(name, done, total),  # type: ignore[misc]
            processes=processes,
        )
    return caches


# -- making shards --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What a worker needs to make any shard."""

    folder: Path
    source: Source
    size: VideoSize
    text_encoder: TextEncoder
    vae: VideoAutoencoder
    variants: int
    strength: float
    shard_examples: int

    def numbers(self, k: int) -> range:
        """Return the examples of a shard."""
        start = k * self.shard_examples
        return range(start, min(start + self.shard_examples, len(self.source)))

    def todo(self) -> list[int]:
        """Return the shards that are not there yet."""
        shards = _shards(self.folder, len(self.source), self.shard_examples)
        return [k for k, shard in enumerate(shards) if not shard.is_file()]

    def write(self, k: int) -> int:
        tensors = {
            f"{i}.{name}": tensor.contiguous()
            for i in self.numbers(k)
            for name, tensor in self.encode(i).items()
        }
        with replacing(_shards(self.folder, len(self.source), self.shard_examples)[k]) as file:
            save_file(tensors, file)
        return k

    def encode(self, i: int) -> dict[str, Tensor]:
        scene, frames = self.source.item(i)
        shape = (self.size.frames, self.size.height, self.size.width, 3)
        if frames.dtype != np.uint8 or frames.shape != shape:
            raise BadInput(
                f"source '{self.source.name}', example {i}: the clip must be uint8 {list(shape)}, "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        prompt = self.text_encoder.prompt(scene.clean_caption)
        masks = word_masks(scene.name, prompt, scene.clean_words, self.text_encoder)
        text = self.text_encoder.embed(prompt)
        clip = torch.from_numpy(to_unit(frames)).permute(3, 0, 1, 2)[None]
        device = next(self.vae.model.parameters()).device
        looks = [scene, *(self.variant(scene, i, v) for v in range(1, self.variants + 1))]
        tensors = {
            "video": self.vae.encode(clip.to(device))[0].cpu().half(),
            "references": torch.stack([self.latents(look) for look in looks]).half(),
            "text": text[: int(prompt.real.sum())].cpu().half(),
            "masks": torch.from_numpy(masks),
            "layout": torch.tensor([scene.lone, *scene.subject_sizes]),
        }
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise BadInput(f"example {i} ('{scene.name}'): its {name} is not finite in fp16")
        return tensors

    def variant(self, scene: Scene, i: int, variant: int) -> Scene:
        if isinstance(self.source, AugmentedSource):
            return self.source.augmented(i, variant)
        height, width = self.size.height, self.size.width
        return augment_scene(
            scene, (i, variant), height=height, width=width, strength=self.strength
        )

    def latents(self, scene: Scene) -> Tensor:
        """Float32 [references, channels, rows, columns]."""
        if not scene.references:
            return torch.zeros(0, self.vae.model.config.z_dim, *self.size.latent[1:])
        pixels = torch.from_numpy(scene.fitted(self.size.height, self.size.width))
        device = next(self.vae.model.parameters()).device
        return self.vae.encode_images(pixels.permute(0, 3, 1, 2).to(device))[:, :, 0].cpu()


def _carried_out(job: _Job, todo: list[int], processes: int) -> Iterator[int]:
    """Write shards, and yield each one's number as it is finished."""
    if processes == 1 or len(todo) < 2:
        yield from map(job.write, todo)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    context = torch.multiprocessing.get_context("spawn")
    workers = min(processes, len(todo))
    with ProcessPoolExecutor(workers, context, _start_worker, (job,)) as pool:
        futures = [pool.submit(_write_shard, k) for k in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise BadInput(
                f"latent cache '{job.folder}': a worker died (too little memory, or a source that "
                "another process cannot import); take processes=1, finished shards are kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_job: _Job | None = None  # of a worker process


def _start_worker(job: _Job) -> None:
    global _job
    torch.set_num_threads(1)
    _job = job


def _write_shard(k: int) -> int:
    assert _job is not None
    return _job.write(k)


# -- files ----------------------------------------------------------------------------------------


def _shards(folder: Path, examples: int, shard_examples: int) -> list[Path]:
    count = -(-examples // shard_examples)
    return [folder / f"shard-{k:05}.safetensors" for k in range(count)]


def _read_shard(path: Path) -> list[Example]:
    look_at(path, "latents", ("safetensors",))
    tensors = load_file(path)
    numbers = sorted({int(name.split(".")[0]) for name in tensors})
    examples = []
    for i in numbers:
        lone, *subjects = tensors[f"{i}.layout"].tolist()
        video, references, text = (tensors[f"{i}.{name}"] for name in Example._fields[:3])
        masks = tensors[f"{i}.masks"].numpy()
        examples.append(Example(video, references, text, masks, lone, tuple(subjects)))
    return examples


def _real_tokens(encoder: TextEncoder, text: str) -> int:
    return int(encoder.tokenize(text)[1].sum())


def _digest(model: torch.nn.Module) -> str:
    """Return the sha256 of a model's tensors by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _tokenizer_digest(encoder: TextEncoder) -> str:
    vocabulary = json.dumps(encoder.tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()

"""Where an engine's weights come from: a checkpoint on disk, or random numbers of a seed."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.defaults import RELEASED, SMALL, read_defaults
from lumosx_rt.artifact.manifest import Manifest
from lumosx_rt.reference.backbones.config import PRESETS, LumosXConfig
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints.bundle import COMPONENTS, Bundle, find_bundle
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.numbers import whole_number

MOST_SEED = 2**63 - 1  # that torch's generators take
ENCODERS = tuple(name for name in COMPONENTS if name != "transformer")


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint in any of the layouts that `find_bundle` recognises."""

    bundle: Bundle
    config: LumosXConfig | None = None
    """Overrides what the checkpoint says or implies of itself."""

    @cached_property
    def hashes(self) -> dict[str, str]:
        parts = {name: getattr(self.bundle, name) for name in COMPONENTS}
        return {name: cache.content_hash(part) for name, part in parts.items() if part is not None}

    def identity(self) -> dict[str, Any]:
        """Return what the manifest says of the weights."""
        self.bundle.require("transformer")
        return {
            "source": "bundle",
            "kind": self.bundle.kind,
            "sha256": self.hashes["transformer"],
        }

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Size and sampling where a request is silent."""
        return read_defaults(self.bundle.root)

    def load(self) -> LumosX:
        return load_transformer(self.bundle, config=self.config)


@dataclass(frozen=True)
class RandomSource:
    """A preset with random weights: the same numbers for the same seed and torch version."""

    preset: str
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_number(self.seed, "seed", 0, MOST_SEED))
        if self.preset not in PRESETS:
            raise BadInput(
                f"preset: got '{self.preset}', accepted are {', '.join(sorted(PRESETS))}"
            )

    def identity(self) -> dict[str, Any]:
        return {
            "source": "random",
            "preset": self.preset,
            "seed": self.seed,
            "sha256": self._digest,
        }

    @property
    def defaults(self) -> dict[str, Any]:
        """Size and sampling where a request is silent."""
        return SMALL if self.preset == "tiny" else RELEASED

    def load(self) -> LumosX:
        model = random_transformer(PRESETS[self.preset], self.seed)
        object.__setattr__(self, "_known", weights_digest(model))
        return model

    @property
    def _digest(self) -> str:
        known: str | None = getattr(self, "_known", None)
        return known or weights_digest(random_transformer(PRESETS[self.preset], self.seed))


Source = CheckpointSource | RandomSource


def random_transformer(config: LumosXConfig, seed: int) -> LumosX:
    """A transformer with torch's default random weights, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LumosX(config).eval().requires_grad_(False)


def weights_digest(model: LumosX) -> str:
    """Return the sha256 over names and float32 values of all parameters, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.float().contiguous().numpy()).cast("B"))
    return digest.hexdigest()


def source_of(manifest: Manifest, checkpoint: str | Path | None) -> Source:
    """Return the weights an engine was built from, to compare it with.

    checkpoint: where they are; needed unless they are random or still where they were built from.
    Raises LumosXError where they cannot be found or are others.
    """
    identity = manifest.checkpoint
    if identity.get("source") == "random":
        found: list[Source] = [RandomSource(str(identity["preset"]), int(identity["seed"]))]
    else:
        config = LumosXConfig.from_dict(manifest.model)
        known = [find_bundle(checkpoint)] if checkpoint else cache.places(str(identity["sha256"]))
        found = [CheckpointSource(bundle, config) for bundle in known]
    if not found:
        raise BadInput(
            "the checkpoint this engine was built from is not where it was; "
            "name it with --checkpoint"
        )
    digests = []
    for source in found:
        digests.append(source.identity()["sha256"])
        if digests[-1] == identity["sha256"]:
            return source
    raise BadInput(
        f"the engine was built from other weights: sha256 {identity['sha256'][:12]}..., "
        f"these have {digests[0][:12]}...; name the right ones with --checkpoint, or build again"
    )


def encoders_of(manifest: Manifest, engine: Path, components: str | Path | None) -> Bundle:
    """Return the bundle that holds the engine's text encoder, tokenizer and VAE.

    Looked for in the engine, then in `components`, then where the user cache remembers them.
    Raises LumosXError where they are missing or others than those the engine belongs to.
    """
    wanted = manifest.components
    candidates: list[tuple[str, Bundle]] = []
    if (engine / "components").is_dir():
        candidates.append((str(engine / "components"), find_bundle(engine / "components")))
    if components is not None:
        candidates.append((str(components), find_bundle(components)))
    if not candidates:  # a part may be shared by several bundles, so ask for each
        known = {b.root: b for digest in wanted.values() for b in cache.places(digest)}
        candidates += [(str(root), bundle) for root, bundle in known.items()]
    if not candidates:
        raise BadInput(
            "this engine comes without text encoder, tokenizer and VAE; name a folder that holds "
            "them with --components, or build it with --self-contained"
        )
    reasons = []
    for where, bundle in candidates:
        missing = [name for name in ENCODERS if getattr(bundle, name) is None]
        foreign = [
            name
            for name in ENCODERS
            if name not in missing
            and name in wanted
            and cache.content_hash(bundle.require(name)) != wanted[name]
        ]
        if not missing and not foreign:
            return bundle
        reasons += [f"{where}: no {name}" for name in missing]
        reasons += [f"{where}: {name} is not the one this engine belongs to" for name in foreign]
    raise BadInput("components: " + "; ".join(reasons))

"""Where the four parts of a LumosX model are on a disk, in any layout people have.

    released    LumosX_models/  models_t5_umt5-xxl-enc-bf16.pth  umt5-xxl/         vae.pth
    Wan2.1      (beside it)     models_t5_umt5-xxl-enc-bf16.pth  google/umt5-xxl/  Wan2.1_VAE.pth
    diffusers   transformer/    text_encoder/                    tokenizer/        vae/

Also a transformer alone. Paths only; no tensors are read and torch is not imported.
"""

import hashlib
import os
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import hash_file, of_the_system, read_json

COMPONENTS = ("transformer", "text_encoder", "tokenizer", "vae")
_T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
_VAE_FILES = ("vae.pth", "Wan2.1_VAE.pth")
_TORCH = (".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Component:
    """One part of a bundle. `path` is what is opened; `files` are all that belongs to it."""

    path: Path
    format: str
    """dcp, safetensors, sharded, torch or tokenizer."""
    files: tuple[Path, ...]
    config: Path | None = None
    """The config.json that describes it, if there is one."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the sorted file names and the bytes of all its files; computed once."""
        total = hashlib.sha256()
        for file in sorted([*self.files, *([self.config] if self.config else [])]):
            total.update(f"{file.name}\n{file.stat().st_size}\n".encode())
            hash_file(total, file)
        return total.hexdigest()


@dataclass(frozen=True)
class Bundle:
    """What was found where. A part that is not there is None."""

    kind: str
    """released, wan, diffusers, or transformer (it alone)."""
    root: Path
    transformer: Component | None = None
    text_encoder: Component | None = None
    tokenizer: Component | None = None
    vae: Component | None = None

    def require(self, name: str) -> Component:
        """A part by name. Raises LumosXError if the bundle has none."""
        part: Component | None = getattr(self, name)
        if part is None:
            present = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Component)]
            raise BadInput(
                f"{self.root}: no {name} here, only {', '.join(present)}; {_ACCEPTED[name]}"
            )
        return part

    @property
    def sha256(self) -> dict[str, str]:
        """Content hash of every part that is there."""
        parts = {name: getattr(self, name) for name in COMPONENTS}
        return {name: part.sha256 for name, part in parts.items() if part is not None}


_ACCEPTED = {
    "transformer": "accepted are transformer/, LumosX_models/, diffusion_pytorch_model.safetensors "
    "or a .pt/.pth/.safetensors file",
    "text_encoder": f"accepted are text_encoder/ and {_T5_FILE}",
    "tokenizer": "accepted are tokenizer/, umt5-xxl/ and google/umt5-xxl/",
    "vae": f"accepted are vae/, {' and '.join(_VAE_FILES)}",
}


def find_bundle(path: str | Path) -> Bundle:
    """Recognise the layout at a path (docs/spec.md#checkpoints). All paths in it are absolute.

    Raises LumosXError if nothing is found, or if it is not clear which file is meant.
    """
    root = Path(path).absolute()  # or it would be lost when the program changes its folder
    if root.is_file():
        return Bundle("transformer", root, transformer=_weights_file(root))
    if not root.is_dir():
        raise BadInput(f"{path}: {_why_not_there(root)}")
    text_encoder = _first(root, "text_encoder", _T5_FILE)
    tokenizer = _tokenizer(root)
    vae = _first(root, "vae", *_VAE_FILES)
    if (root / "transformer").is_dir():
        transformer = _weights_in(root / "transformer")
    elif (root / "LumosX_models").is_dir():
        transformer = _weights_in(root / "LumosX_models")
    else:
        transformer = _weights_in(root, needed=False)
    if not any((transformer, text_encoder, tokenizer, vae)):
        raise BadInput(
            f"{root}: no checkpoint here; " + "; ".join(f"{k}: {v}" for k, v in _ACCEPTED.items())
        )
    if any((root / name).is_dir() for name in ("transformer", "text_encoder", "vae")):
        kind = "diffusers"
    elif (root / "LumosX_models").is_dir() or (root / "vae.pth").is_file():
        kind = "released"
    elif any((text_encoder, tokenizer, vae)):
        kind = "wan"
    else:
        kind = "transformer"
    return Bundle(kind, root, transformer, text_encoder, tokenizer, vae)


def name_of(path: str | Path) -> str:
    """Return what to call what is made of a checkpoint: its name, less a suffix of weights."""
    root = Path(os.path.abspath(path))
    suffixes = (".safetensors.index.json", ".safetensors", *_TORCH) if root.is_file() else ()
    known = next((suffix for suffix in suffixes if root.name.endswith(suffix)), "")
    return root.name.removesuffix(known) or "engine"


def _why_not_there(path: Path) -> str:
    if path.exists():
        return "a pipe or a device; give a file of weights, or a folder"
    return "no such file or folder" + (", only a link to one" if path.is_symlink() else "")


def _first(root: Path, folder: str, *files: str) -> Component | None:
    if (root / folder).is_dir():
        return _weights_in(root / folder)
    parts = (_weights_file(root / name, described=False) for name in files)
    return next((part for part in parts if part.path.is_file()), None)


def _tokenizer(root: Path) -> Component | None:
    for name in ("tokenizer", "umt5-xxl", "google/umt5-xxl"):
        folder = root / name
        if folder.is_dir():
            files = sorted(f for f in folder.iterdir() if f.is_file() and not of_the_system(f.name))
            return Component(folder, "tokenizer", tuple(files))
    return None


def _weights_in(folder: Path, needed: bool = True) -> Component | None:
    """Return the weights of one model in a folder: a distributed checkpoint, safetensors, or
    torch."""
    for inner in (folder / "all", folder / "ema", folder / "model", folder):
        if (inner / ".metadata").is_file():
            files = (inner / ".metadata", *sorted(inner.glob("*.distcp")))
            config = _described_by(inner) or _described_by(folder)
            return Component(inner, "dcp", files, config)
    for pattern in ("*.safetensors.index.json", "*.safetensors", "*.pt", "*.pth", "*.bin"):
        known = {_T5_FILE, *_VAE_FILES}
        found = sorted(
            f
            for f in folder.glob(pattern)
            if f.is_file() and f.name not in known and not of_the_system(f.name)
        )
        if len(found) > 1:
            names = ", ".join(f.name for f in found[:8])
            raise BadInput(f"{folder}: which of {names} is meant? Give the file itself")
        if found:
            return _weights_file(found[0])
    if needed:
        raise BadInput(
            f"{folder}: no weights; accepted are all/ with .metadata (a distributed checkpoint), "
            ".safetensors, .pt and .pth"
        )
    return None


def _described_by(folder: Path) -> Path | None:
    """Return the config.json in a folder, if there is one. Raises LumosXError if it is no file."""
    config = folder / "config.json"
    if os.path.lexists(config) and not config.is_file():
        raise BadInput(f"{config} is no regular file, or a link to none; put the file there")
    return config if config.is_file() else None


def _weights_file(path: Path, described: bool = True) -> Component:
    """described: a config.json in the same folder is this file's."""
    about = _described_by(path.parent) if described else None
    if path.name.endswith(".index.json"):
        index = read_json(path).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise BadInput(f"{path}: not the index of a sharded checkpoint (no weight_map)")
        shards = sorted({str(name) for name in index.values()})
        beside = {f.name: f for f in path.parent.iterdir() if f.is_file()}
        files = (path, *(beside[name] for name in shards if name in beside))
        return Component(path, "sharded", files, about)
    if path.suffix == ".safetensors":
        return Component(path, "safetensors", (path,), about)
    if path.suffix in _TORCH:
        return Component(path, "torch", (path,), about)
    raise BadInput(
        f"{path}: not a checkpoint; accepted are .safetensors, .safetensors.index.json, .pt, .pth"
    )

"""Reads a torch distributed checkpoint without a process group and without trusting it.

Its `.metadata` is a pickle. It goes through an unpickler that knows a short list of names and
makes inert records of them: no class of torch is touched, no function is called, and opcodes
that could allocate without bounds are not understood. What the records say is then checked
against the files: names that stay in the folder, slices inside the files, chunks that fill
their tensor exactly once.
"""

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumosx_rt.reference.checkpoints.torch_zip import DTYPES, read_tensor
from lumosx_rt.reference.errors import BadInput, LumosXError, listing
from lumosx_rt.reference.files import look_at, open_regular

METADATA = ".metadata"
ENTRIES = ("ema", "model")
"""Top-level entries that hold a transformer, in order of preference."""

_LIMIT_BYTES = 1 << 28
_MAX_CHUNKS = 4096
_MAX_RANK = 8
_CHECKPOINT = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    (_CHECKPOINT, "Metadata"),
    (_CHECKPOINT, "MetadataIndex"),
    (_CHECKPOINT, "StorageMeta"),
    (_CHECKPOINT, "TensorStorageMetadata"),
    (_CHECKPOINT, "BytesStorageMetadata"),
    (_CHECKPOINT, "ChunkStorageMetadata"),
    (_CHECKPOINT, "TensorProperties"),
    (_CHECKPOINT, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *((m, f"{k}Path") for m in ("pathlib", "pathlib._local") for k in ("", "Posix", "PurePosix")),
}
_UNDERSTOOD = {
    opcode: run
    for opcode, run in pickle._Unpickler.dispatch.items()
    if bytes([opcode])
    not in (
        pickle.BYTEARRAY8,
        pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER,
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
        pickle.PERSID,
        pickle.BINPERSID,
        pickle.INST,
        pickle.OBJ,
    )
}


@dataclass(frozen=True)
class Chunk:
    """A stored piece of a tensor, its place in the tensor and its place in the file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint: its shape, and the chunks that fill it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


def read_checkpoint(folder: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """Shapes by name, and a function that reads one tensor.

    Takes the entry "ema", else "model", else everything if the names are not nested
    (docs/spec.md#checkpoints).
    Raises one LumosXError naming all that is wrong; nothing in the checkpoint is run.
    """
    records = _unpickle(folder / METADATA)
    try:
        entries = _entries(records, folder)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"{folder / METADATA}: not the metadata of a checkpoint") from error
    shapes = {name: entry.shape for name, entry in entries.items()}
    return shapes, lambda name: _read(folder, name, entries[name])


def _read(folder: Path, name: str, entry: Entry) -> Tensor:
    """One whole tensor. A tensor of one chunk is not copied."""
    whole: Tensor | None = None
    for chunk in entry.chunks:
        with (folder / chunk.file).open("rb") as file:
            file.seek(chunk.start)
            piece = read_tensor(io.BytesIO(file.read(chunk.length)), f"{chunk.file}: {name}")
        if tuple(piece.shape) != chunk.sizes or piece.dtype != entry.dtype:
            raise BadInput(
                f"{folder / chunk.file}: {name} is {piece.dtype} {list(piece.shape)}, "
                f"the metadata says {entry.dtype} {list(chunk.sizes)}"
            )
        if chunk.sizes == entry.shape:  # a view would keep its whole storage alive
            need = piece.numel() * piece.element_size()
            return piece if piece.untyped_storage().nbytes() <= need else piece.clone()
        if whole is None:
            whole = torch.empty(entry.shape, dtype=entry.dtype)
        place = (slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
        whole[tuple(place)] = piece
    assert whole is not None  # an entry has at least one chunk
    return whole


def _entries(metadata: Any, folder: Path) -> dict[str, Entry]:
    """Return the transformer's tensors, with every claim of the metadata checked against the
    files."""
    stored = {
        (str(index.fqn), _ints(getattr(index, "offset", None) or ())): info
        for index, info in metadata.storage_data.items()
    }
    sizes: dict[str, int] = {}
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for name, (flat, about) in _chosen(metadata).items():
        if not hasattr(about, "size"):
            problems.append(f"{name} is not a tensor")
            continue
        try:
            entries[name] = _entry(flat, about, stored, folder, sizes)
        except LumosXError as error:
            problems.append(f"{name}: {error}")
    held = sum(sizes.values())
    wanted = sum(math.prod(e.shape) * e.dtype.itemsize for e in entries.values())
    if not problems and wanted > held:
        problems.append(f"declares {wanted} bytes of tensors, the files hold {held}")
    if problems:
        raise BadInput(listing(str(folder / METADATA), problems))
    return entries


def _chosen(metadata: Any) -> dict[str, tuple[str, Any]]:
    """Tensor name -> (name in the checkpoint, record) of the entry that holds the transformer."""
    paths = getattr(metadata, "planner_data", None) or {}
    found: dict[str, dict[str, tuple[str, Any]]] = {}
    plain: dict[str, tuple[str, Any]] = {}
    for flat, about in metadata.state_dict_metadata.items():
        path = paths.get(flat) if isinstance(paths, dict) else None
        parts = [str(part) for part in path] if isinstance(path, tuple) else flat.split(".", 1)
        plain[flat] = (flat, about)
        if len(parts) > 1 and "freqs" not in flat:
            found.setdefault(parts[0], {})[".".join(parts[1:])] = (flat, about)
    entry = next((found[entry] for entry in ENTRIES if entry in found), None)
    if entry is None:
        entry = {name: about for name, about in plain.items() if "freqs" not in name}
    if not entry:
        raise BadInput(f"a distributed checkpoint without tensors; expected under {ENTRIES}")
    return entry


def _entry(
    flat: str,
    about: Any,
    stored: dict[tuple[str, tuple[int, ...]], Any],
    folder: Path,
    sizes: dict[str, int],
) -> Entry:
    """One tensor's chunks. Fills `sizes` with the bytes of the files it meets."""
    shape, dtype = _ints(about.size), _dtype(about.properties)
    if dtype not in DTYPES:
        raise BadInput(f"is stored as {dtype}; floating point is expected")
    if not 0 < len(about.chunks) <= _MAX_CHUNKS:
        raise BadInput(f"has {len(about.chunks)} chunks; 1 to {_MAX_CHUNKS} are read")
    chunks = []
    for piece in about.chunks:
        offsets, extent = _ints(piece.offsets), _ints(piece.sizes)
        info = stored.get((flat, offsets))
        if info is None:
            raise BadInput(f"the chunk at {list(offsets)} is stored nowhere")
        if getattr(info, "transform_descriptors", None):
            raise BadInput("is compressed; save the checkpoint without transforms")
        name = str(info.relative_path)
        if Path(name).name != name or "\\" in name or name in (".", ".."):
            raise BadInput(f"its file {name!r} is not a plain name in this folder")
        if name not in sizes:
            if not (folder / name).is_file():
                raise BadInput(f"its file {name} is missing")
            look_at(folder / name, "weights", ("zip",))
            sizes[name] = (folder / name).stat().st_size
        start, length = _ints((info.offset, info.length))
        need = math.prod(extent) * dtype.itemsize
        if start + length > sizes[name] or need > length:
            raise BadInput(f"a chunk of {need} bytes does not lie in {name}")
        chunks.append(Chunk(offsets, extent, name, start, length))
    _check_cover(shape, chunks)
    return Entry(shape, dtype, tuple(chunks))


def _check_cover(shape: tuple[int, ...], chunks: list[Chunk]) -> None:
    """Chunks must fill their tensor exactly once."""
    if any(len(c.offsets) != len(shape) or len(c.sizes) != len(shape) for c in chunks):
        raise BadInput("a chunk has another rank than its tensor")
    start = np.array([c.offsets for c in chunks], np.int64).reshape(len(chunks), len(shape))
    stop = start + np.array([c.sizes for c in chunks], np.int64).reshape(start.shape)
    inside = bool((stop <= np.array(shape, np.int64)).all())
    filled = sum(math.prod(c.sizes) for c in chunks) == math.prod(shape)
    shared = np.ones((len(chunks), len(chunks)), np.bool_)
    for axis in range(len(shape)):  # two boxes overlap if they do so on every axis
        low = np.maximum(start[:, None, axis], start[None, :, axis])
        shared &= low < np.minimum(stop[:, None, axis], stop[None, :, axis])
    np.fill_diagonal(shared, False)
    if not inside or not filled or shared.any():
        raise BadInput(f"its chunks do not fill its shape {list(shape)} exactly once")


def _ints(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if len(numbers) > _MAX_RANK or any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
        raise BadInput(f"{str(numbers)[:80]} are not sizes")
    return numbers


def _dtype(properties: Any) -> Any:
    state = getattr(properties, "positional", None)
    return state[0] if state else properties.dtype


class _Record:
    """What a name of the allow-list becomes: it keeps what it is given and does nothing."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(name): value for name, value in state.items()})
        else:
            self.positional = tuple(state)


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python: its memo is a dict, so an index cannot allocate."""

    dispatch = _UNDERSTOOD

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return type(name, (_Record,), {})  # fresh: a pickle may set attributes on it
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"{module}.{name}")


def _unpickle(path: Path) -> Any:
    """Read `.metadata` into inert records. Raises LumosXError for a name off the list."""
    if not path.is_file():
        raise BadInput(f"{path.parent}: no {METADATA}, so not a distributed checkpoint")
    with open_regular(path, _LIMIT_BYTES, "metadata", empty=True) as file:
        data = file.read(_LIMIT_BYTES)
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a hostile pickle may raise anything
        raise BadInput(
            f"{path}: refused at {type(error).__name__}: {str(error)[:200]}; only the records of a "
            "torch distributed checkpoint are read, and nothing in the file was run"
        ) from error

"""Reads tensors, and nothing but tensors, from torch.save archives that nobody vouches for.

Before torch sees an archive, its directory is checked (stored, not compressed, no more bytes
declared than the file has) and every name its pickle would import is held against a short list.
Archives of before torch 1.6 are no zip files and cannot be memory-mapped; they are refused.
"""

import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lumosx_rt.reference.errors import BadInput, listing
from lumosx_rt.reference.files import open_regular

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NESTS = ("ema", "model", "model_state", "state_dict", "module")
"""Entries under which training scripts keep a model's tensors, in order of preference."""

_IMPORTS = frozenset(
    [
        "collections OrderedDict",
        "torch Size",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.storage UntypedStorage",
        "torch UntypedStorage",
        *(f"torch {str(dtype).removeprefix('torch.')}" for dtype in DTYPES),
        *(
            f"torch {kind}Storage"
            for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char")
        ),
        "torch ByteStorage",
        "torch BoolStorage",
        "torch ComplexFloatStorage",
    ]
)
_PICKLE_LIMIT_BYTES = 1 << 28


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .pt or .pth file by name, memory-mapped.

    A model's tensors may are at the top or under one of `NESTS`. Raises LumosXError for anything
    that is not a plain dictionary of dense tensors; nothing in the file is run.
    """
    with open_regular(path, 1 << 62, "weights", ("zip",)) as file:
        check_archive(file, path.name)
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken archive
        raise BadInput(f"{path}: not a readable torch file ({_first_line(error)})") from error
    state = _unnest(found, path)
    check_tensors(state, str(path))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    size = path.stat().st_size
    if sum(held.values()) > size:
        raise BadInput(f"{path}: declares {sum(held.values())} bytes of tensors, holds {size}")
    return state


def read_tensor(file: BinaryIO, name: str) -> Tensor:
    """Return the one tensor in a torch.save archive. Raises LumosXError if there is anything
    else."""
    check_archive(file, name)
    file.seek(0)
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInput(f"{name}: not a readable tensor ({_first_line(error)})") from error
    if not isinstance(tensor, Tensor):
        raise BadInput(f"{name}: holds a {type(tensor).__name__}, not a tensor")
    check_tensors({name: tensor}, name)
    return tensor.detach()


def check_tensors(state: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors that are not dense, or that claim more elements than they store."""
    problems = []
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            problems.append(f"{name} is not a plain dense tensor")
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            problems.append(f"{name} declares shape {list(tensor.shape)}, but stores fewer numbers")
    if problems:
        raise BadInput(listing(source, problems))


def check_archive(file: BinaryIO, name: str) -> None:
    """Refuses an archive that is compressed, overstated or would import more than tensors need."""
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
            declared = sum(e.file_size for e in entries)
            pickles = [e for e in entries if e.filename.endswith("data.pkl")]
            if packed or declared > size or len(pickles) != 1:
                raise BadInput(f"{name}: not an archive as torch.save writes it; refused")
            if pickles[0].file_size > _PICKLE_LIMIT_BYTES:
                raise BadInput(f"{name}: its pickle is over {_PICKLE_LIMIT_BYTES} bytes; refused")
            program = archive.read(pickles[0])
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadInput(
            f"{name}: not a torch file this reads (damaged, or from before torch 1.6); load it "
            "with weights_only=True in a torch that can, and torch.save it again"
        ) from error
    foreign = _foreign_imports(program, name)
    if foreign:
        raise BadInput(
            f"{name}: would import {', '.join(foreign)}; only tensors are read, "
            "and nothing in the file was run. Save a plain dict of tensors, or safetensors"
        )


def _foreign_imports(program: bytes, name: str) -> list[str]:
    """Return what a pickle would import beyond what tensors need; it is read, not run."""
    foreign: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in ("GLOBAL", "INST"):
                if argument not in _IMPORTS:
                    foreign.append(str(argument).replace(" ", "."))
            elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "BYTEARRAY8"):
                foreign.append(f"something by {opcode.name}")
    except Exception as error:  # pickletools raises many kinds for a broken pickle
        raise BadInput(f"{name}: its pickle is damaged ({_first_line(error)})") from error
    return sorted(set(foreign))


def _unnest(found: Any, path: Path) -> dict[str, Tensor]:
    """Return the dictionary of tensors, at the top or under the names that training scripts use."""
    for _ in range(4):
        if not isinstance(found, dict):
            raise BadInput(f"{path}: holds a {type(found).__name__}, not a dict of tensors")
        strangers = [str(k) for k, v in found.items() if not isinstance(v, Tensor)]
        if found and not strangers:
            return {str(name): tensor.detach() for name, tensor in found.items()}
        inner = [found[n] for n in NESTS if isinstance(found.get(n), dict)]
        inner = inner or [part for part in found.values() if _is_model(part)]
        if not inner or (len(inner) > 1 and not set(NESTS) & found.keys()):
            break
        found = inner[0]
    raise BadInput(
        f"{path}: entries that are not tensors: {', '.join(sorted(strangers)[:20]) or 'none'}; "
        f"accepted are a dict of tensors, one under {', '.join(NESTS)}, or the only one in the file"
    )


def _is_model(part: Any) -> bool:
    return (
        isinstance(part, dict) and bool(part) and all(isinstance(t, Tensor) for t in part.values())
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

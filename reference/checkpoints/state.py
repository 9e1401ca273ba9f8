"""A model's tensors by name, wherever they are stored, and how they become a model.

`open_state` recognises the file; `State` hands out one tensor at a time (memory-mapped, or read
when asked for), so that a model is never in memory twice; `assign` puts a state into a model that
was built on the meta device and names everything that does not fit.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from lumosx_rt.reference.checkpoints.torch_zip import DTYPES, read_torch_file
from lumosx_rt.reference.errors import MOST_LISTED, BadInput, listing
from lumosx_rt.reference.files import look_at, read_json


class State(Mapping[str, Tensor]):
    """Tensors by name. Shapes are known at once; a tensor is read when it is asked for."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
        source: str,
    ) -> None:
        self.shapes, self.source = dict(shapes), source
        self._read = read

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: str) -> "State":
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls(shapes, tensors.__getitem__, source)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def renamed(self, name_of: Callable[[str], str | None]) -> "State":
        """Return the same tensors under other names; those named None are left out.

        Raises LumosXError if two would share a name.
        """
        names: dict[str, str] = {}
        problems = []
        for old in self.shapes:
            new = name_of(old)
            if new in names:
                problems.append(f"{old} and {names[new]} are both {new}")
            elif new is not None:
                names[new] = old
        if problems:
            raise BadInput(listing(self.source, problems))
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return State(shapes, lambda new: self._read(names[new]), self.source)

    def aliased(self, aliases: Mapping[str, str]) -> "State":
        """Return the same tensors, some of them under further names: new name -> old name."""
        shapes = self.shapes | {new: self.shapes[old] for new, old in aliases.items()}
        return State(shapes, lambda name: self._read(aliases.get(name, name)), self.source)


def open_state(path: Path) -> State:
    """Open .safetensors, a .safetensors.index.json, .pt/.pth/.bin, or a distributed checkpoint.

    Raises LumosXError if it is none of them, is damaged, or would run code.
    """
    if path.is_dir():
        from lumosx_rt.reference.checkpoints.dcp import read_checkpoint

        shapes, read = read_checkpoint(path)
        return State(shapes, read, str(path))
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if path.name.endswith(".json"):
        return _open_sharded(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return State.of(read_torch_file(path), str(path))
    raise BadInput(
        f"{path}: not a checkpoint; accepted are .safetensors, .safetensors.index.json, .pt, .pth "
        "and distributed checkpoints (a folder with .metadata)"
    )


def assign(
    model: nn.Module,
    state: State,
    tied: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Fill a model that was built on the meta device, in the model's own dtypes.

    tied: parameters that are another one under a second name, which need not be in the state.
    A tensor of the right dtype is taken as it is (memory-mapped where the file is), others are
    cast, and carried to another device, one at a time. Raises one LumosXError naming the missing,
    unexpected, wrongly shaped or wrongly stored keys; where these are many, some of each kind.
    """
    tied = tied or {}
    wanted = {key: place for key, place in model.state_dict().items() if key not in tied}
    problems = _key_problems({key: tuple(t.shape) for key, t in wanted.items()}, state.shapes)
    if problems:
        raise BadInput(listing(state.source, problems))
    filled: dict[str, Tensor] = {}
    for key, place in wanted.items():
        tensor = state[key]
        if tensor.dtype not in DTYPES:
            problems.append(f"{key} is stored as {tensor.dtype}, which needs scales to be read")
        elif not problems:
            filled[key] = tensor.to(device, place.dtype)
    if problems:
        raise BadInput(listing(state.source, problems))
    filled |= {key: filled[other] for key, other in tied.items()}
    model.load_state_dict(filled, assign=True)


def _key_problems(
    wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """List every key that does not fit; where many are of a kind, how many, and some of them."""
    missing = {key: f"{key} is missing" for key in wanted if key not in given}
    strange = {key: f"{key} is unexpected" for key in given if key not in wanted}
    shaped = {
        key: f"{key} has shape {list(given[key])}, not {list(wanted[key])}"
        for key in given
        if key in wanted and given[key] != wanted[key]
    }
    kinds = [
        (missing, f"of {len(wanted)} keys are missing"),
        (strange, f"of {len(given)} keys are unexpected"),
        (shaped, f"of {len(given)} keys have another shape"),
    ]
    kinds = sorted((kind for kind in kinds if kind[0]), key=lambda kind: len(kind[0]))
    problems: list[str] = []
    for problem_of, said in kinds:
        most = MOST_LISTED // len(kinds)
        if len(problem_of) <= most:
            problems += problem_of.values()
        else:
            problems.append(f"{len(problem_of)} {said}: {_some(list(problem_of), most)}")
    return problems


def _some(keys: list[str], most: int) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _open_safetensors(path: Path) -> State:
    look_at(path, "weights", ("safetensors",))
    try:
        file: Any = safetensors.safe_open(str(path), framework="pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error})") from error
    return State(shapes, file.get_tensor, str(path))


def _open_sharded(path: Path) -> State:
    """Return the shards named by an index. Their names must be plain: no way out of the folder."""
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise BadInput(f"{path}: has no weight_map")
    shards: dict[str, State] = {}
    problems = []
    for shard in sorted({str(name) for name in index.values()}):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            problems.append(f"{shard!r} is not the name of a .safetensors file in this folder")
        elif not (path.parent / shard).is_file():
            problems.append(f"{shard} is missing")
        else:
            shards[shard] = _open_safetensors(path.parent / shard)
    problems += [
        f"{name} is not in {shard}"
        for name, shard in index.items()
        if shard in shards and name not in shards[shard].shapes
    ]
    if problems:
        raise BadInput(listing(str(path), problems))
    shapes = {name: shards[shard].shapes[name] for name, shard in index.items()}
    return State(shapes, lambda name: shards[index[name]][name], str(path))

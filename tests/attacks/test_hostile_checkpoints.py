"""Checkpoints that lie, and checkpoints that attack: refused with the reason, and nothing runs."""

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.loading import load_state, load_transformer
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError


class Attack:
    """Pickles as a call. It would leave a file behind."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def attacks(proof: Path) -> dict[str, Any]:
    return {
        "posix.system": Attack(os.system, f"touch {proof}"),
        "builtins.eval": Attack(eval, f"open({str(proof)!r}, 'w')"),
        "builtins.getattr": Attack(getattr, "x", "upper"),
        "pathlib": Attack(Path.touch, proof),
        "numpy": np.zeros(3),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
def test_a_torch_file_runs_nothing(name: str, tmp_path: Path) -> None:
    attack = attacks(tmp_path / "proof")[name]
    torch.save({"ema": {"x": torch.ones(2)}, "y": attack}, tmp_path / "m.pt")
    with pytest.raises(LumosXError, match="nothing in the file was run") as refused:
        load_state(tmp_path / "m.pt")
    assert name.split(".")[-1] in str(refused.value)
    assert not (tmp_path / "proof").exists()


def test_the_attacks_would_work_on_a_trusting_reader(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(attacks(tmp_path / "proof")["posix.system"]))
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", attacks(Path("x")))
@pytest.mark.parametrize("place", ["all", "planner_data", "key", "dtype"])
def test_metadata_runs_nothing(name: str, place: str, tmp_path: Path) -> None:
    attack = attacks(tmp_path / "proof")[name]
    tensor = TensorStorageMetadata(TensorProperties(), torch.Size([1]), [])
    metadata: Any = Metadata({"ema.x": tensor}, {}, {})
    if place == "all":
        metadata = attack
    elif place == "planner_data":
        metadata.planner_data = {"ema.x": attack}
    elif place == "key":
        metadata.state_dict_metadata = {(attack if name != "numpy" else 1,): attack}
    else:
        tensor.properties.dtype = attack
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(LumosXError, match="nothing in the file was run"):
        load_state(tmp_path)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "program",
    [
        pickle.PROTO + b"\x05" + pickle.BYTEARRAY8 + (1 << 40).to_bytes(8, "little") + b".",
        pickle.PROTO + b"\x04" + b"K\x01" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + b".",
        pickle.PROTO + b"\x04" + pickle.BINBYTES8 + (1 << 40).to_bytes(8, "little") + b".",
        pickle.PROTO + b"\x02" + pickle.EXT1 + b"\x01.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"cbuiltins\neval\n.",
        b"ctorch\nload\n.",
        b"ctorch.hub\nload\n.",
        b"ctorch\nfloat32.__class__\n.",
        b"",
        b"garbage",
    ],
)
def test_metadata_of_odd_opcodes_is_refused(program: bytes, tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(program)
    with pytest.raises(LumosXError, match=r"\.metadata: (refused|not the metadata)"):
        load_state(tmp_path)


def test_unpickled_names_do_not_reach_torch(tmp_path: Path) -> None:
    """BUILD may set attributes on what a name stands for; that must not be torch's own class."""
    program = (
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
        b"(N}S'poisoned'\nI1\nstb."  # state (None, {...}): set attributes
    )
    (tmp_path / ".metadata").write_bytes(program)
    with pytest.raises(LumosXError):
        load_state(tmp_path)
    assert not hasattr(Metadata, "poisoned")


class Shards:
    """A distributed checkpoint of one [4, 3] tensor in two chunks, written by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensor = torch.arange(12.0).view(4, 3)
        self.sizes, self.rows = [4, 3], [(0, 1), (1, 4)]
        self.file, self.cut = "__0_0.distcp", 0
        self.stretch = 0

    def write(self) -> None:
        blobs = b""
        chunks: list[ChunkStorageMetadata] = []
        places = {}
        for start, stop in self.rows:
            if len(chunks) < 2:
                torch.save(self.tensor[start:stop].clone(), self.folder / "blob")
            blob = (self.folder / "blob").read_bytes()
            extent = torch.Size([stop - start, 3 + self.stretch])
            chunks.append(ChunkStorageMetadata(torch.Size([start, 0]), extent))
            index = MetadataIndex("ema.x", [start, 0], len(chunks) - 1)
            places[index] = _StorageInfo(self.file, len(blobs), len(blob) + self.cut)
            blobs += blob
        (self.folder / "blob").unlink()
        (self.folder / "__0_0.distcp").write_bytes(blobs)
        about = TensorStorageMetadata(TensorProperties(), torch.Size(self.sizes), chunks)
        metadata = Metadata({"ema.x": about}, {"ema.x": ("ema", "x")}, places)
        (self.folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_chunks_are_put_together(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.write()
    assert torch.equal(load_state(tmp_path)["x"], shards.tensor)
    from torch.distributed.checkpoint.state_dict_loader import load

    theirs = {"ema": {"x": torch.zeros(4, 3)}}  # the file is one that torch reads, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(theirs, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(theirs["ema"]["x"], shards.tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../secret.distcp"}, "not a plain name"),
        ({"file": "/etc/passwd"}, "not a plain name"),
        ({"file": "..\\secret"}, "not a plain name"),
        ({"file": "gone.distcp"}, "is missing"),
        ({"cut": 10**6}, "does not lie in"),
        ({"sizes": [10**6, 10**6]}, "do not fill"),
        ({"sizes": [10**30, 1]}, "are not sizes"),
        ({"sizes": [-4, -3]}, "are not sizes"),
        ({"sizes": [12]}, "another rank"),
        ({"rows": [(0, 1), (2, 4)]}, "do not fill"),
        ({"rows": [(0, 3), (1, 2)]}, "do not fill"),
        ({"rows": [(0, 1), (1, 4)] * 3000}, "chunks"),
        ({"stretch": 10**9, "sizes": [4, 3 + 10**9]}, "does not lie in"),
        ({"stretch": 1, "sizes": [4, 4]}, "the metadata says"),
        ({"tensor": torch.arange(12).view(4, 3)}, "the metadata says"),
    ],
)
def test_metadata_that_lies_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "secret.distcp").write_bytes(b"secret")
    shards = Shards(tmp_path / "all")
    shards.__dict__.update(change)
    shards.write()
    with pytest.raises(LumosXError, match=message):
        load_state(tmp_path)


def declared_but_not_stored(folder: Path) -> Path:
    torch.save({"x": torch.zeros(1).expand(10**6, 10**6)}, folder / "m.pt")
    return folder / "m.pt"


def compressed(folder: Path) -> Path:
    torch.save({"x": torch.zeros(10**6)}, folder / "plain.pt")
    with (
        zipfile.ZipFile(folder / "plain.pt") as plain,
        zipfile.ZipFile(folder / "m.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    return folder / "m.pt"


def more_than_its_record(folder: Path) -> Path:
    """The pickle says the storage has 2**20 numbers; its record has 4."""
    torch.save({"x": torch.zeros(4)}, folder / "plain.pt")
    with (
        zipfile.ZipFile(folder / "plain.pt") as plain,
        zipfile.ZipFile(folder / "m.pt", "w") as made,
    ):
        for entry in plain.infolist():
            data = plain.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = data.replace(b"K\x04", b"J\x00\x00\x10\x00")
            made.writestr(entry.filename, data)
    return folder / "m.pt"


def legacy(folder: Path) -> Path:
    torch.save({"x": torch.zeros(3)}, folder / "m.pt", _use_new_zipfile_serialization=False)
    return folder / "m.pt"


def a_list(folder: Path) -> Path:
    torch.save([torch.zeros(3)], folder / "m.pt")
    return folder / "m.pt"


def numbers_among_tensors(folder: Path) -> Path:
    torch.save({"x": torch.zeros(3), "epoch": 3}, folder / "m.pt")
    return folder / "m.pt"


def index_to(shard: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "inner").mkdir()
        save_file({"x": torch.zeros(1)}, folder / "secret.safetensors")
        index = folder / "inner" / "m.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"x": shard}}))
        return index

    return write


def bytes_of(data: bytes, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


HEADER = json.dumps({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}})
HOSTILE = {
    "expanded": (declared_but_not_stored, "stores fewer numbers"),
    "compressed": (compressed, "not an archive as torch.save writes it"),
    "overstated": (more_than_its_record, "not a readable torch file|declares"),
    "legacy": (legacy, "before torch 1.6"),
    "list": (a_list, "not a dict of tensors"),
    "mixed": (numbers_among_tensors, "entries that are not tensors: epoch"),
    "up": (index_to("../secret.safetensors"), "not the name of a .safetensors file"),
    "absolute": (index_to("/etc/passwd"), "not the name of a .safetensors file"),
    "gone": (index_to("gone.safetensors"), "gone.safetensors is missing"),
    "nested": (
        bytes_of(b'{"weight_map": ' + b"[" * 10**5, "m.safetensors.index.json"),
        "not the index|not readable",
    ),
    "header": (
        bytes_of(len(HEADER).to_bytes(8, "little") + HEADER.encode() + b"0000", "m.safetensors"),
        "not a readable safetensors file",
    ),
    "long-header": (bytes_of(b"\xff" * 8 + b"{}", "m.safetensors"), "not a readable safetensors"),
    "empty": (bytes_of(b"", "m.safetensors"), "not a readable safetensors file"),
    "junk": (bytes_of(b"PK\x03\x04junk", "m.pth"), "not a torch file this reads"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused(name: str, tmp_path: Path) -> None:
    write, message = HOSTILE[name]
    with pytest.raises(LumosXError, match=message):
        load_state(write(tmp_path))


def test_eight_bit_weights_are_not_read_without_their_scales(tmp_path: Path) -> None:
    config = LumosXConfig(dim=48, num_heads=2, num_layers=1, ffn_dim=8, freq_dim=8, text_dim=8)
    state = LumosX(config).state_dict()
    state = {k: v.to(torch.float8_e4m3fn) if v.dim() == 2 else v for k, v in state.items()}
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(LumosXError, match="float8_e4m3fn, which needs scales"):
        load_transformer(tmp_path, config=config)

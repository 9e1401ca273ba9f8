"""An engine folder written by hand, with any manifest."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import LumosXError

GRAPH, DATA, TOKENIZER = (
    "transformer/model.onnx",
    "transformer/model.onnx.data",
    "components/tokenizer/tokenizer.json",
)

CONTENT = {GRAPH: b"graph", DATA: bytes(range(256)) * 40, TOKENIZER: "{ü}".encode()}


def entries() -> dict:
    """A manifest written by hand."""
    return {
        "format": 1,
        "model": asdict(LumosXConfig(dim=48, num_heads=2)),
        "checkpoint": {"source": "random", "preset": "tiny", "seed": 3, "sha256": "a" * 64},
        "backend": "onnxruntime",
        "precision": "fp32",
        "device": {"name": "cpu"},
        "versions": {"torch": "2.13.0"},
        "layouts": {
            "frames": [1, 1024],
            "height": [1, 1024],
            "width": [1, 1024],
            "seeds": [1, 64],
            "references": [0, 16],
            "members": [1, 16],
        },
        "defaults": {
            "frames": 17,
            "height": 128,
            "width": 288,
            "fps": 16,
            "steps": 20,
            "shift": 8.0,
            "guidance": 6.0,
        },
        "components": {"vae": "b" * 64},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in CONTENT.items()
        },
    }


def engine(root: Path, raw: object = None) -> Path:
    """An engine folder, with `raw` as its manifest: entries, text or bytes."""
    for name, content in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    raw = entries() if raw is None else raw
    raw = json.dumps(raw) if isinstance(raw, dict | list) else raw
    (root / "manifest.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return root


def refusal(call, *args, **options) -> str:
    with pytest.raises(LumosXError) as found:
        call(*args, **options)
    return str(found.value)

"""The video's self-attention in e4m3 as TensorRT takes it: a static number of keys, padded.

    k, v    [k less its mean, v, one row of zeros][:, min(slot, keys)]       slot = 0 .. slots - 1
    out     softmax(dq(q(q)) dq(q(k))^T / sqrt(d), slot < keys) dq(q(v))      probabilities too

`slots` is a buffer of the model, so the graph of one number of slots becomes that of another by
changing it (`with_slots`). TensorRT quantizes probabilities itself (`export/tensorrt/plan.py`);
groups, masked already, are left in half precision and as long as they are.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lumosx_rt.export.onnx.ops import QDQ_NODES, attend_fused
from lumosx_rt.reference.backbones.ops import Attend
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout

FEWEST = 32  # TensorRT-RTX 1.7.1 has no 8-bit attention over fewer keys
SLOTS = "key_slots"  # the buffer, and the graph's initializer


def slots_of(size: tuple[int, int, int], references: int) -> Tensor:
    """Number the key slots of a video of this size (frames, rows, columns of tokens) and so many
    references."""
    frames, height, width = size
    layout = SceneLayout(video_frames=frames, height=height, width=width, lone=references)
    return torch.arange(max(layout.tokens, FEWEST))


def padded_rectangle(model: nn.Module) -> Any:
    """Give `calibration.apply.graph.carried` attention over as many keys as the buffer says."""

    def rectangle(scales: Any, smooth: bool) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            if mask is not None:
                return attend_fused(q, k, v, mask)
            keys, slots = k.shape[1], model.get_buffer(SLOTS)
            if smooth:
                k = (k - k.float().mean(1, keepdim=True)).to(k.dtype)
            place = slots.clamp(max=keys)
            k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], 1)[:, place] for x in (k, v))
            seen = (slots < keys)[None, None, None]
            q, k, v = QDQ_NODES(q, scales.q), QDQ_NODES(k, scales.k), QDQ_NODES(v, scales.v)
            return attend_fused(q, k, v, seen)

        return attend

    return rectangle


def with_slots(graph: Path, out: Path, slots: Tensor) -> None:
    """Write `out` (.onnx), the graph with another number of slots, sharing its external data."""
    import onnx_ir as ir

    model: Any = ir.load(graph)
    value = next(v for name, v in model.graph.initializers.items() if name.endswith(SLOTS))
    before = value.const_value.size
    value.const_value = ir.tensor(slots.numpy(), name=value.name)
    value.shape = ir.Shape(slots.shape)
    for output in (output for node in model.graph for output in node.outputs):
        if output.shape:  # stated with the old number; a last axis is a head's channels
            *axes, last = output.shape
            unknown = ir.SymbolicDim(None)
            axes = [unknown if size == before else size for size in axes]
            whole = output.dtype in (ir.DataType.BOOL, ir.DataType.INT64)
            output.shape = ir.Shape([*axes, unknown if whole and last == before else last])
    ir.save(model, out)

"""A calibrated model with e4m3 in its graph: what the exports of FP8 engines trace.

    linear      y = dq(q(x, x_scale)) @ dq(w8, w_scale) + bias            w8 is in the file
    attention   p = softmax(dq(q(q)) @ dq(q(k - mean)).T / sqrt(d))
                out = dq(q(p, 1/448)) @ dq(q(v))

`carried` replaces a model's linears for as long as its block runs and gives the operations to trace
it with. Scales are buffers named by site and role (`blocks.3.self_attn.q.x`, `blocks.3.self.k`), so
a graph can be read back and compared with the document. Only calibrated scales can be carried:
those found while running (activations "row") are the kernels' own (`kernels/`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lumosx_rt.calibration.attach import attached, linear_at, wrapped
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.scheme import centred, without_mean
from lumosx_rt.calibration.sites import is_attention, part_of
from lumosx_rt.kernels.qdq import PROBABILITY_SCALE, Qdq, quantize, weight_scale
from lumosx_rt.reference.backbones import ops as plain
from lumosx_rt.reference.backbones.ops import (
    QKV,
    Attend,
    Attended,
    CrossAttention,
    CrossAttentionOp,
    Ops,
    SelfAttention,
    SelfAttentionOp,
)
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput


class CarriedLinear(nn.Module):
    """A linear in e4m3, made from one: [..., in] -> [..., out]."""

    weight: Tensor
    weight_scale: Tensor
    x: Tensor

    def __init__(self, linear: nn.Linear, input_scale: float, shared: str, qdq: Qdq) -> None:
        super().__init__()
        self.qdq, self.dtype = qdq, linear.weight.dtype
        weight = linear.weight.detach()
        scale = weight_scale(weight, shared)
        self.register_buffer("weight", quantize(weight, scale).T.contiguous())  # [in, out]
        own = scale.T.contiguous().flatten() if shared == "channel" else scale.reshape(())
        self.register_buffer("weight_scale", own)
        self.register_buffer("x", scale.new_tensor(input_scale))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.qdq.dequantize(self.weight, self.weight_scale, self.dtype)
        out = self.qdq(x, self.x) @ weight
        return out if self.bias is None else out + self.bias


class OperandScales(nn.Module):
    """The scales of an attention's queries, keys and values, and of its probabilities."""

    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor

    def __init__(self, scales: dict[str, float], device: torch.device) -> None:
        super().__init__()
        for role, scale in {**scales, "p": PROBABILITY_SCALE}.items():
            self.register_buffer(role, torch.tensor(scale, dtype=torch.float32, device=device))


Rectangle = Callable[[OperandScales, bool], Attend]
"""Given scales, and whether keys are smoothed: attention of the video, in e4m3, over unquantized
operands; called with a mask it is that of groups."""


@contextmanager
def carried(
    model: LumosX, document: Calibration, qdq: Qdq, ops: Ops, rectangle: Rectangle | None = None
) -> Iterator[Ops]:
    """Hold the document's linears in e4m3 while the block runs; gives the operations.

    ops: what everything else runs on. rectangle: where only the video's self-attention can be in
    e4m3. Raises LumosXError where the model is another, or scales are not known beforehand.
    """
    document.check(model)
    check_carriable(document)
    device = model.head.head.weight.device
    linears: dict[str, nn.Module] = {}
    scales: dict[str, OperandScales] = {}
    for site in document.quantized:
        own = document.sites[site].scales
        if not is_attention(site):
            linear = linear_at(model, site)
            linears[site] = CarriedLinear(linear, own["x"], document.scheme["weights"], qdq)
        elif rectangle is None or part_of(site) == "self":
            scales[site] = OperandScales(own, device)
    with attached(model, {**linears, **scales}):
        yield carried_ops(ops, scales, qdq, document.scheme["smooth_keys"], rectangle)


def check_carriable(document: Calibration) -> None:
    """Raise LumosXError where scales are found while running, which graphs do not do."""
    if document.scheme["activations"] != "tensor":
        raise BadInput(
            "calibration: its activations have a scale a row, found while running, which only the "
            "kernels of --backend torch on a GPU do; calibrate with --activations tensor"
        )


def carried_ops(
    ops: Ops,
    scales: dict[str, OperandScales],
    qdq: Qdq,
    smooth: bool,
    rectangle: Rectangle | None = None,
) -> Ops:
    """Give operations whose attention is in e4m3 at the sites that have scales."""

    def self_attention(run: SelfAttentionOp, call: SelfAttention) -> Attended:
        if call.site not in scales:
            return run(call)
        own = scales[call.site]
        if rectangle is not None:
            return plain.self_attention(call, rectangle(own, smooth))
        video, condition = call.video, call.condition
        if smooth:
            video_k, condition_k = centred(video.k, condition.k)
            video, condition = video._replace(k=video_k), condition._replace(k=condition_k)
        video, condition = (
            QKV(
                None if part.q is None else qdq(part.q, own.q),
                qdq(part.k, own.k),
                qdq(part.v, own.v),
            )
            for part in (video, condition)
        )
        spelled = partial(attend_spelled, qdq=qdq, scale=own.p)
        return plain.self_attention(call._replace(video=video, condition=condition), spelled)

    def cross_attention(run: CrossAttentionOp, call: CrossAttention) -> Attended:
        if call.site not in scales:
            return run(call)
        own = scales[call.site]

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            smoothed = without_mean(k) if smooth else k
            parts = qdq(q, own.q), qdq(smoothed, own.k), qdq(v, own.v)
            return attend_spelled(*parts, mask, qdq, own.p)

        # the bias comes from queries and keys as they are
        return plain.cross_attention(call, attend)

    return wrapped(ops, self_attention, cross_attention)


def attend_spelled(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, qdq: Qdq, scale: Tensor
) -> Tensor:
    """Do as `reference.ops.attend` with probabilities in e4m3; q, k, v are quantized already."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    logits = (q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    if mask is not None:
        logits = logits + mask
    p = qdq(torch.softmax(logits, dim=-1), scale)
    return (p.to(v.dtype) @ v).transpose(1, 2)

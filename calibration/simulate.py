"""FP8 on any machine: e4m3 there and back at every quantized site, rounded as kernels/ round.

    x8 = (x / scale).clamp(-448, 448).to(e4m3)
    linear      y = (x8 @ w8.T) * x_scale * w_scale + bias                   products in float32
    attention   p = softmax(q' @ k'.T / sqrt(d)),  out = (e4m3(p * 448) / 448) @ v'

The model does not know: its linears are replaced and its `Ops` wrapped while a block runs.
Keys lose their mean over all tokens that a query may see, which softmax does not notice.
With activations "row", everything is as the Triton kernels find it while they run: a scale a row of
a linear's input and of queries, a block of 128 keys, a channel of values (`quantize_kv.py`).
"""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from lumosx_rt.calibration.attach import attached, linear_at, wrapped
from lumosx_rt.calibration.scheme import Scales, Scheme, centred, without_mean
from lumosx_rt.calibration.sites import is_attention
from lumosx_rt.kernels import quantize_kv
from lumosx_rt.kernels.norm_modulate import quantize_rows
from lumosx_rt.kernels.qdq import PLAIN, PROBABILITY_SCALE, quantize, weight_scale
from lumosx_rt.reference.backbones import ops as plain
from lumosx_rt.reference.backbones.ops import (
    QKV,
    Attended,
    CrossAttention,
    CrossAttentionOp,
    Ops,
    SelfAttention,
    SelfAttentionOp,
)
from lumosx_rt.reference.backbones.wan import LumosX

ROW_PROBABILITY_SCALE = 2.0**-8  # of exp(logit - largest logit), as in online_softmax.py
Probe = Callable[[str, Tensor, Tensor], None]
"""Called with (site, what it gives unquantized, what it gives) whenever a site has run."""


class SimulatedLinear(nn.Module):
    """A linear in e4m3, made from one: [..., in] -> [..., out]. input_scale None: a scale a row."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, linear: nn.Linear, input_scale: float | None, weights: str) -> None:
        super().__init__()
        self.input_scale, self.original = input_scale, linear
        scale = weight_scale(linear.weight.detach(), weights)
        self.register_buffer("weight", quantize(linear.weight.detach(), scale).float())
        self.register_buffer("weight_scale", scale.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.input_scale is None:
            rows = quantize_rows(x)
            x8, scale = rows.values.float(), rows.scale
        else:
            scale = torch.tensor(self.input_scale, device=x.device)
            x8 = quantize(x, scale).float()
        out = x8 @ self.weight.T * scale * self.weight_scale
        bias = self.original.bias
        return (out if bias is None else out + bias).to(x.dtype)


class Probed(nn.Module):
    """A simulated linear that tells what it and its original make of the same input."""

    def __init__(self, linear: SimulatedLinear, tell: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.linear, self.tell = linear, tell

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        self.tell(self.linear.original(x), out)
        return out


class Simulation:
    """A model with any of its sites in FP8."""

    def __init__(self, model: LumosX, scheme: Scheme, scales: Scales) -> None:
        self.model, self.scheme, self.scales = model, scheme, scales
        self._linears: dict[str, SimulatedLinear] = {}

    def running(
        self, sites: Collection[str], probe: Probe | None = None
    ) -> AbstractContextManager[LumosX]:
        """Give the model with these sites quantized, while the block runs.

        probe: called with what each of them makes of the same operands without and with
        quantization.
        """
        linears: dict[str, nn.Module] = {}
        for site in sites:
            if not is_attention(site):
                linear = self._linear(site)
                linears[site] = linear if probe is None else Probed(linear, partial(probe, site))
        attentions = {site for site in sites if is_attention(site)}
        return attached(self.model, linears, self._ops(self.model.ops, attentions, probe))

    def _linear(self, site: str) -> SimulatedLinear:
        if site not in self._linears:
            linear = linear_at(self.model, site)
            static = self.scheme.activations == "tensor"
            scale = self.scales[site]["x"] if static else None
            self._linears[site] = SimulatedLinear(linear, scale, self.scheme.weights)
        return self._linears[site]

    def _ops(self, ops: Ops, sites: Collection[str], probe: Probe | None) -> Ops:
        def self_attention(run: SelfAttentionOp, call: SelfAttention) -> Attended:
            if call.site not in sites:
                return run(call)
            out = plain.self_attention(*self._quantized(call))
            if probe is not None:
                _tell(probe, call.site, run(call), out)
            return out

        def cross_attention(run: CrossAttentionOp, call: CrossAttention) -> Attended:
            if call.site not in sites:
                return run(call)
            # the bias comes from queries and keys as they are: a table too small to be worth it
            out = plain.cross_attention(call, self._cross_attend(call.site))
            if probe is not None:
                _tell(probe, call.site, run(call), out)
            return out

        return wrapped(ops, self_attention, cross_attention)

    def _quantized(self, call: SelfAttention) -> tuple[SelfAttention, plain.Attend]:
        """Return the call with quantized operands, and the attention over them."""
        video, condition = call.video, call.condition
        if self.scheme.activations == "row":
            return call._replace(video=_rows(video), condition=_rows(condition)), attend_rows
        if self.scheme.smooth_keys:
            video_k, condition_k = centred(video.k, condition.k)
            video, condition = video._replace(k=video_k), condition._replace(k=condition_k)
        video, condition = (_static(part, self.scales[call.site]) for part in (video, condition))
        return call._replace(video=video, condition=condition), attend_e4m3

    def _cross_attend(self, site: str) -> plain.Attend:
        def rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            q, k, v = (x for x in _rows(QKV(q, k, v)) if x is not None)
            return attend_rows(q, k, v, mask)

        def static(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            if self.scheme.smooth_keys:
                k = without_mean(k)
            q, k, v = (x for x in _static(QKV(q, k, v), self.scales[site]) if x is not None)
            return attend_e4m3(q, k, v, mask)

        return rows if self.scheme.activations == "row" else static


def attend_e4m3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Do as `reference.ops.attend` with probabilities in e4m3; q, k, v are quantized already."""
    p = _logits(q, k, mask).softmax(-1)
    return _weighted(_qdq(p, PROBABILITY_SCALE), v)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the same as the kernel does it: e4m3 before the division by the sum."""
    logits = _logits(q, k, mask)
    p = (logits - logits.amax(-1, keepdim=True)).exp()
    return _weighted(_qdq(p, ROW_PROBABILITY_SCALE) / p.sum(-1, keepdim=True), v)


def _logits(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """[batch, heads, queries, keys], float32."""
    wide = q.float().transpose(1, 2) @ k.float().permute(0, 2, 3, 1) * q.shape[-1] ** -0.5
    if mask is None:
        return wide
    return wide.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else wide + mask


def _weighted(p: Tensor, v: Tensor) -> Tensor:
    return (p @ v.float().transpose(1, 2)).transpose(1, 2).to(v.dtype)


def _qdq(x: Tensor, scale: float) -> Tensor:
    return PLAIN(x, torch.tensor(scale, device=x.device))


def _static(part: QKV, scales: dict[str, float]) -> QKV:
    q = None if part.q is None else _qdq(part.q, scales["q"])
    return QKV(q, _qdq(part.k, scales["k"]), _qdq(part.v, scales["v"]))


def _rows(part: QKV) -> QKV:
    q = part.q
    if q is not None:
        rows = quantize_rows(q)
        q = (rows.values.float() * rows.scale).to(q.dtype)
    return QKV(q, *quantize_kv.dequantize_kv(quantize_kv.plain(part.k, part.v), part.k.dtype))


def _tell(probe: Probe, site: str, right: Attended, out: Attended) -> None:
    for a, b in zip(right, out, strict=True):
        if a is not None and b is not None:
            probe(site, a, b)

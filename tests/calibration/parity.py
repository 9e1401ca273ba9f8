"""Every site by itself on the operands of the unquantized model, against float64.

An independent oracle: e4m3 by powers of two instead of a cast, scales and amax from the document.
A site may err at most twice as much as plain torch in float32 with the oracle's operands. The
softmax before probabilities are rounded is float32's, so one that is near a boundary may round to
either side; what that can change in a result is not counted.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lumosx_rt.calibration.attach import attached, wrapped
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.samples import moments_of, velocity_of
from lumosx_rt.calibration.simulate import Simulation
from lumosx_rt.calibration.sites import is_attention
from lumosx_rt.reference.backbones.ops import QKV
from tests.calibration import toys
from tests.helpers.budget import FLOOR, reach


class Expected(NamedTuple):
    """What a site should give, all of one shape."""

    exact: np.ndarray
    plain: np.ndarray
    """Plain torch's in float32, of the same rounded operands."""
    slack: np.ndarray | float = 0.0
    """What probabilities near a boundary may change."""


def e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest value of e4m3, ties to even, saturated: 3 bits of mantissa from 2^-6 on."""
    size = np.minimum(np.abs(x.astype(np.float64)), 448.0)
    exponent = np.maximum(np.floor(np.log2(np.maximum(size, 2.0**-20))), -6)
    step = 2.0 ** (exponent - 3)
    return np.copysign(np.minimum(np.round(size / step) * step, 448.0), x)


def qdq(x: torch.Tensor, scale: float) -> np.ndarray:
    return e4m3(x.numpy() / np.float32(scale)) * scale


def layer_errors(
    simulation: Simulation, sites: list[str], document: Calibration
) -> dict[str, tuple[float, float]]:
    """|simulated - expected| / |expected| of every site of the document, over all its calls; and
    what is allowed.

    sites: those that the simulation quantizes.
    """
    errors = {}
    example = toys.example(0)
    moment = moments_of(simulation.model, example, toys.SAMPLING)[0]
    velocity = velocity_of(simulation.model, example, 1.0)
    for site in document.quantized:
        calls = []
        with simulation.running([site] if site in sites else []) as model:
            with _watched(model, site, calls):
                velocity(moment)
        expected = _attention if is_attention(site) else _linear
        pairs = [
            (out.numpy().astype(np.float64), wanted)
            for inputs, out in calls
            for out, wanted in expected(simulation.model, site, inputs, out, document)
        ]
        wrong = [np.maximum(np.abs(out - w.exact) - w.slack, 0) for out, w in pairs]
        plain, exact = [w.plain - w.exact for _, w in pairs], [w.exact for _, w in pairs]
        errors[site] = _norm(wrong) / _norm(exact), max(2 * _norm(plain) / _norm(exact), FLOOR)
    return errors


def _norm(arrays: list[np.ndarray]) -> float:
    return sum(float((array**2).sum()) for array in arrays) ** 0.5


def failing(errors: dict[str, tuple[float, float]]) -> set[str]:
    return {site for site, (error, allowed) in errors.items() if not error <= allowed}


def _watched(model, site, calls):
    """A block in which the calls of a site are noted, with what they give."""
    if not is_attention(site):
        linear = model.get_submodule(site)
        return linear.register_forward_hook(lambda _, x, out: calls.append((x, out)))

    def watched(run, call):
        out = run(call)
        if call.site == site:
            calls.append((call, out))
        return out

    name = "self_attention" if site.endswith(".self") else "cross_attention"
    return attached(model, {}, wrapped(model.ops, **{name: watched}))


def _linear(model, site, inputs, out, document):
    linear = model.get_submodule(site)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.numpy()
    axis = 1 if document.scheme["weights"] == "channel" else None
    scale = np.abs(weight).max(axis=axis, keepdims=True) * np.float32(1 / 448)
    if axis is None:
        scale = np.abs(weight).max(keepdims=True) / np.float32(448)
    w = e4m3(weight / scale) * scale.astype(np.float64)
    x = qdq(inputs[0], document.sites[site].scales["x"])
    plain = nn.functional.linear(*map(_single, (x, w)), linear.bias)
    return [(out, Expected(x @ w.T + linear.bias.numpy().astype(np.float64), plain.numpy()))]


def _attention(model, site, call, out, document):
    scales = document.sites[site].scales
    if site.endswith(".cross"):
        video_q, condition_q, k, v, bias, structure, _ = call
        smooth = (k - k.mean(1, keepdim=True)).numpy()
        k8 = e4m3(smooth / np.float32(scales["k"])) * scales["k"]
        pairs = [(out[0], _attend(qdq(video_q, scales["q"]), k8, qdq(v, scales["v"]), 0))]
        if condition_q is not None:
            rows = _bias_rows(condition_q, k, bias, structure)
            q = qdq(condition_q, scales["q"])
            pairs.append((out[1], _attend(q, k8, qdq(v, scales["v"]), rows)))
        return pairs
    video, condition, structure, _ = call
    both = QKV(None, *(torch.cat(pair, 1) for pair in zip(video[1:], condition[1:], strict=True)))
    keys = (both.k - both.k.mean(1, keepdim=True)).numpy()
    k = e4m3(keys / np.float32(scales["k"])) * scales["k"]
    v = qdq(both.v, scales["v"])
    pairs = [(out[0], _attend(qdq(video.q, scales["q"]), k, v, 0))]
    if condition.q is not None:
        frame = structure.bias_tiles.numel()
        first = video.k.shape[1] // frame
        wanted = Expected(*(np.zeros(condition.q.shape) for _ in Expected._fields))
        q = qdq(condition.q, scales["q"])
        for index, mask in zip(structure.group_index[0], structure.group_mask[0], strict=True):
            members = index[mask].tolist()
            tokens = np.concatenate([np.arange(f * frame, (f + 1) * frame) for f in members])
            own = tokens - first * frame
            parts = _attend(q[:, own], k[:, tokens], v[:, tokens], 0)
            for whole, part in zip(wanted, parts, strict=True):
                whole[:, own] = part
        pairs.append((out[1], wanted))
    return pairs


def _attend(q, k, v, bias):
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + bias
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).astype(np.float32) * np.float32(448)
    near = e4m3(p + reach(p)) - e4m3(p - reach(p))
    p = e4m3(p) / 448
    plain = torch.einsum("bhqk,bkhd->bqhd", *map(_single, (p, v))).numpy()
    slack = np.einsum("bhqk,bkhd->bqhd", near / 448, np.abs(v))
    return Expected(np.einsum("bhqk,bkhd->bqhd", p, v), plain, slack)


def _single(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).float()


def _bias_rows(q, k, bias, structure):
    """MCAM by its formula: ratio * |mean of the tile's queries . k| / sqrt(d) * template."""
    tiles = structure.tile_pool.flatten(1).double().numpy()
    frames = q.double().numpy().reshape(1, -1, tiles.shape[1], *q.shape[2:])
    pooled = np.einsum("tp,bfphd->bhftd", tiles, frames)
    scores = (
        np.abs(np.einsum("bhftd,blhd->bhftl", pooled, k.double().numpy())) * q.shape[-1] ** -0.5
    )
    table = bias.ratio * scores * bias.template.double().numpy()[:, None, :, None]
    rows = table[:, :, :, structure.bias_tiles.flatten().numpy()]
    return rows.reshape(*rows.shape[:2], -1, rows.shape[-1])

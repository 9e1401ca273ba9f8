"""Every site by itself on the operands of the unquantized model, against float64.

An independent oracle: e4m3 by powers of two instead of a cast, scales and amax from the document.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.samples import moments_of, velocity_of
from lumosx_rt.calibration.simulate import Simulation
from lumosx_rt.calibration.sites import is_attention
from lumosx_rt.reference.backbones.ops import QKV
from tests.calibration import toys

LINEAR_GATE = 1e-6
ATTENTION_GATE = 1e-3  # float32's softmax may round a probability the other way


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
) -> dict[str, float]:
    """|simulated - expected| / |expected| of every site of the document, over all its calls.

    sites: those that the simulation quantizes.
    """
    errors = {}
    example = toys.example(0)
    moment = moments_of(simulation.model, example, toys.SAMPLING)[0]
    velocity = velocity_of(simulation.model, example, 1.0)
    for site in document.quantized:
        calls = []
        with simulation.running([site] if site in sites else []) as model:
            if is_attention(site):
                watch = _watched_attention(model, site, calls)
            else:
                watch = model.get_submodule(site).register_forward_hook(
                    lambda _, x, out, calls=calls: calls.append((x, out))
                )
            velocity(moment)
            if is_attention(site):
                model.ops = watch
            else:
                watch.remove()
        expected = _attention if is_attention(site) else _linear
        pairs = [
            (np.asarray(out, np.float64), wanted)
            for inputs, out in calls
            for out, wanted in expected(simulation.model, site, inputs, out, document)
        ]
        wrong = sum(((a - b) ** 2).sum() for a, b in pairs)
        errors[site] = float((wrong / sum((b**2).sum() for _, b in pairs)) ** 0.5)
    return errors


def failing(errors: dict[str, float]) -> set[str]:
    return {
        site
        for site, error in errors.items()
        if not error <= (ATTENTION_GATE if is_attention(site) else LINEAR_GATE)
    }


def _watched_attention(model, site, calls):
    ops = model.ops
    name = "self_attention" if site.endswith(".self") else "cross_attention"

    def watched(*inputs):
        out = getattr(ops, name)(*inputs)
        if inputs[-1] == site:
            calls.append((inputs, out))
        return out

    model.ops = replace(ops, **{name: watched})
    return ops


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
    return [(out.numpy(), x @ w.T + linear.bias.numpy().astype(np.float64))]


def _attention(model, site, inputs, out, document):
    scales = document.sites[site].scales
    if site.endswith(".cross"):
        video_q, condition_q, k, v, bias, structure, _ = inputs
        smooth = (k - k.mean(1, keepdim=True)).numpy()
        k8 = e4m3(smooth / np.float32(scales["k"])) * scales["k"]
        pairs = [(out[0], _attend(qdq(video_q, scales["q"]), k8, qdq(v, scales["v"]), 0))]
        if condition_q is not None:
            rows = _bias_rows(condition_q, k, bias, structure)
            q = qdq(condition_q, scales["q"])
            pairs.append((out[1], _attend(q, k8, qdq(v, scales["v"]), rows)))
        return [(a.numpy(), b) for a, b in pairs]
    video, condition, structure, _ = inputs
    both = QKV(None, *(torch.cat(pair, 1) for pair in zip(video[1:], condition[1:], strict=True)))
    keys = (both.k - both.k.mean(1, keepdim=True)).numpy()
    k = e4m3(keys / np.float32(scales["k"])) * scales["k"]
    v = qdq(both.v, scales["v"])
    pairs = [(out[0].numpy(), _attend(qdq(video.q, scales["q"]), k, v, 0))]
    if condition.q is not None:
        frame = structure.bias_tiles.numel()
        first = video.k.shape[1] // frame
        wanted = np.zeros(condition.q.shape)
        q = qdq(condition.q, scales["q"])
        for index, mask in zip(structure.group_index[0], structure.group_mask[0], strict=True):
            members = index[mask].tolist()
            tokens = np.concatenate([np.arange(f * frame, (f + 1) * frame) for f in members])
            own = tokens - first * frame
            wanted[:, own] = _attend(q[:, own], k[:, tokens], v[:, tokens], 0)
        pairs.append((out[1].numpy(), wanted))
    return pairs


def _attend(q, k, v, bias):
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + bias
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = e4m3((p / p.sum(-1, keepdims=True)).astype(np.float32) * np.float32(448)) / 448
    return np.einsum("bhqk,bkhd->bqhd", p, v)


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

"""How large the operands of every site become: modelopt's max calibrators, fed from outside.

    amax[site][operand][bin] = max |x|  over tokens, channels, steps of the bin, and scenes

nvidia-modelopt's calibrators do the collecting. Its module replacement does not fit: attention's
operands live in `Ops`, and one linear serves video and condition, which are told apart here by the
order of calls. Maxima, not histograms: e4m3 is floating point, so clipping outliers buys the rest
no precision. Maxima also make scenes independent: each is kept as it is done, and the result is the
same in any order. Softmax needs no observing, it ends at 1 (`PROBABILITY_SCALE` of simulate.py).
"""

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from lumosx_rt.calibration.attach import attached, linear_at, wrapped
from lumosx_rt.calibration.samples import Sampling, walk
from lumosx_rt.calibration.scheme import centred, without_mean
from lumosx_rt.calibration.sites import is_attention, operands_of, sites_of
from lumosx_rt.reference.backbones.ops import (
    Attended,
    CrossAttention,
    CrossAttentionOp,
    SelfAttention,
    SelfAttentionOp,
)
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.packages import require
from lumosx_rt.reference.sampling.request import Request

Ranges = dict[str, dict[str, list[float | None]]]
"""Site -> operand -> amax of every timestep bin; None where nothing came by."""


class Watched(nn.Module):
    """A module whose input is noted before it runs."""

    def __init__(self, module: nn.Module, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.module, self.note = module, note

    def forward(self, x: Tensor) -> Tensor:
        self.note(x)
        out: Tensor = self.module(x)
        return out


class Observer:
    """A collector of the largest magnitudes of operands; `bin` says which timestep bin comes in."""

    def __init__(self, model: LumosX, bins: int) -> None:
        self.bin = 0
        self._model, self._bins = model, bins
        self._maxima: dict[tuple[str, str, int], Any] = {}
        self._calls: Counter[str] = Counter()

    def watching(self) -> AbstractContextManager[LumosX]:
        """Watch the model's linears and attentions while the block runs."""
        model = self._model
        linears = {
            site: Watched(model.get_submodule(site), partial(self._linear, site))
            for site in sites_of(model.config)
            if not is_attention(site)
        }
        ops = wrapped(model.ops, self._self_attention, self._cross_attention)
        return attached(model, linears, ops, before=self._calls.clear)

    def ranges(self) -> Ranges:
        def amax(*key: Any) -> float | None:
            found = self._maxima.get(key)
            return None if found is None else float(found.compute_amax())

        return {
            site: {
                operand: [amax(site, operand, b) for b in range(self._bins)]
                for operand in operands_of(site)
            }
            for site in sites_of(self._model.config)
        }

    def _note(self, site: str, operand: str, x: Tensor | None) -> None:
        if x is None or not x.numel():
            return
        x = x.float()
        if not torch.isfinite(x).all():
            raise BadInput(
                f"{site}: its operand `{operand}` is not finite in timestep bin {self.bin}; no "
                "scale fits that. Check the weights, or observe in fp32"
            )
        key = (site, operand, self.bin)
        if key not in self._maxima:
            self._maxima[key] = max_calibrator(None)
        self._maxima[key].collect(x)

    def _linear(self, site: str, x: Tensor) -> None:
        self._note(site, operands_of(site)[self._calls[site]], x)
        self._calls[site] += 1

    def _self_attention(self, run: SelfAttentionOp, call: SelfAttention) -> Attended:
        video, condition, _, site = call
        keys = centred(video.k, condition.k)
        for name, part, smooth in (("video", video, keys[0]), ("condition", condition, keys[1])):
            for role, x in (*part._asdict().items(), ("k_centred", smooth)):
                self._note(site, f"{name}.{role}", x)
        return run(call)

    def _cross_attention(self, run: CrossAttentionOp, call: CrossAttention) -> Attended:
        found = (call.video_q, call.condition_q, call.k, without_mean(call.k), call.v)
        for operand, x in zip(operands_of(call.site), found, strict=True):
            self._note(call.site, operand, x)
        return run(call)


def observe(model: LumosX, request: Request, sampling: Sampling) -> Ranges:
    """Sample one scene and return what it showed. Raises LumosXError naming a site that is not
    finite."""
    observer = Observer(model, sampling.bins)
    bin_of = {step: b for b, steps in enumerate(sampling.binned_steps) for step in steps}

    def before(step: int) -> None:
        observer.bin = bin_of[step]

    with observer.watching():
        for _ in walk(model, request, before):
            pass
    return observer.ranges()


def merged(parts: list[Ranges]) -> Ranges:
    """Return the maxima over scenes."""

    def most(values: tuple[float | None, ...]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return {
        site: {
            operand: [most(by) for by in zip(*(part[site][operand] for part in parts), strict=True)]
            for operand in operands
        }
        for site, operands in parts[0].items()
    }


def weight_amax(model: LumosX) -> dict[str, list[float]]:
    """Return for every linear the amax of its smallest and its largest output channel.

    The latter is the tensor's. The channels' own are not kept: they follow from the weights.
    """
    found = {}
    for site in sites_of(model.config):
        if not is_attention(site):
            calibrator = max_calibrator(0)
            calibrator.collect(linear_at(model, site).weight.detach().float())
            channels = calibrator.compute_amax()
            found[site] = [float(channels.min()), float(channels.max())]
    return found


def max_calibrator(axis: int | None) -> Any:
    """modelopt's, over everything, or one maximum for every index of an axis."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every transformers it was not tested with
        from modelopt.torch.quantization.calib import MaxCalibrator
    return MaxCalibrator(num_bits=(4, 3), axis=axis)


def modelopt_version() -> str:
    """Return the version of nvidia-modelopt. Raises LumosXError if it is not installed."""
    require("calibration", "modelopt")
    return version("nvidia-modelopt")

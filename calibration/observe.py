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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from lumosx_rt.calibration.samples import Sampling, walk
from lumosx_rt.calibration.scheme import centred, without_mean
from lumosx_rt.calibration.sites import is_attention, operands_of, sites_of
from lumosx_rt.reference.backbones.ops import QKV, WordBias
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure
from lumosx_rt.reference.packages import require
from lumosx_rt.reference.sampling.request import Request

Ranges = dict[str, dict[str, list[float | None]]]
"""Site -> operand -> amax of every timestep bin; None where nothing came by."""


class Observer:
    """Collects the largest magnitudes of operands; `bin` says which timestep bin comes in."""

    def __init__(self, model: LumosX, bins: int) -> None:
        self.bin = 0
        self._model, self._ops, self._bins = model, model.ops, bins
        self._maxima: dict[tuple[str, str, int], Any] = {}
        self._calls: Counter[str] = Counter()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the model's linears and operations, while the block runs."""
        model, ops = self._model, self._ops
        with ExitStack() as stack:
            stack.callback(setattr, model, "ops", ops)
            start = model.register_forward_pre_hook(lambda *_: self._calls.clear())
            stack.callback(start.remove)
            for site in sites_of(model.config):
                if not is_attention(site):
                    hook = partial(self._linear, site)
                    handle = model.get_submodule(site).register_forward_pre_hook(hook)
                    stack.callback(handle.remove)
            model.ops = replace(
                ops,
                self_attention=self._self_attention,
                cross_attention=self._cross_attention,
            )
            yield

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
            raise LumosXError(
                f"{site}: its operand `{operand}` is not finite in timestep bin {self.bin}; no "
                "scale fits that. Check the weights, or observe in fp32"
            )
        key = (site, operand, self.bin)
        if key not in self._maxima:
            self._maxima[key] = max_calibrator(None)
        self._maxima[key].collect(x)

    def _linear(self, site: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self._note(site, operands_of(site)[self._calls[site]], inputs[0])
        self._calls[site] += 1

    def _self_attention(
        self, video: QKV, condition: QKV, structure: Structure, site: str
    ) -> tuple[Tensor, Tensor | None]:
        keys = centred(video.k, condition.k)
        for name, part, smooth in (("video", video, keys[0]), ("condition", condition, keys[1])):
            for role, x in (*part._asdict().items(), ("k_centred", smooth)):
                self._note(site, f"{name}.{role}", x)
        return self._ops.self_attention(video, condition, structure, site)

    def _cross_attention(
        self,
        video_q: Tensor,
        condition_q: Tensor | None,
        k: Tensor,
        v: Tensor,
        bias: WordBias | None,
        structure: Structure,
        site: str,
    ) -> tuple[Tensor, Tensor | None]:
        found = (video_q, condition_q, k, without_mean(k), v)
        for operand, x in zip(operands_of(site), found, strict=True):
            self._note(site, operand, x)
        return self._ops.cross_attention(video_q, condition_q, k, v, bias, structure, site)


def observe(model: LumosX, request: Request, sampling: Sampling) -> Ranges:
    """Samples one scene and returns what it showed. Raises LumosXError naming a site that is not
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
    """The maxima over scenes."""

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
    """Of every linear: the amax of its smallest and its largest output channel.

    The latter is the tensor's. The channels' own are not kept: they follow from the weights.
    """
    found = {}
    for site in sites_of(model.config):
        if not is_attention(site):
            weight: Any = model.get_submodule(site).weight
            calibrator = max_calibrator(0)
            calibrator.collect(weight.detach().float())
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

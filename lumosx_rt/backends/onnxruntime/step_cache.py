"""An onnxruntime graph in parts, some of which do not run at every step: `lossy.Lossy`.

Every part is a session with the weights it needs; what one part makes stays where it was made, for
the parts and steps that read it. Weights that several parts read are held several times.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.backends.common.odd_sizes import takes_odd_sizes
from lumosx_rt.backends.onnxruntime.providers import COMPILING, open_session
from lumosx_rt.backends.onnxruntime.run import BoundInputs, chosen, described, run, session_options
from lumosx_rt.export.onnx import split as cut
from lumosx_rt.export.onnx.named_values import video_of
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.packages import require
from lumosx_rt.reference.process import check_process
from lumosx_rt.reference.sampling.inputs import OUTPUT, Denoiser, Inputs
from lumosx_rt.reference.sampling.shortcuts import Lossy


class CachingBackend:
    """Raises LumosXError where the graph cannot be cut, or the provider fails."""

    def __init__(
        self,
        graph: Path,
        config: LumosXConfig,
        lossy: Lossy,
        provider: Provider = "auto",
        threads: int | None = None,
    ) -> None:
        require("cutting a graph (lossy shortcuts)", "onnxruntime", "onnx")
        import onnxruntime

        if provider in COMPILING:
            raise Unsupported(
                f"lossy: --provider {provider} compiles whole graphs, and shortcuts cut them; take "
                "cpu or cuda"
            )
        self._ort: Any = onnxruntime
        self._pid = os.getpid()
        self.config, self.lossy = config, lossy
        self.provider = chosen(onnxruntime, provider)
        self.threads = session_options(onnxruntime, threads).intra_op_num_threads
        self.runs: Counter[str] = Counter()
        """How often every part has run."""
        try:
            parts = cut.parts_of(cut.load(graph), keys=lossy.reuses_keys, steps=lossy.skips_blocks)
        except ValueError as error:
            raise Unsupported(
                f"{graph.name}: {error}, shortcuts need to know where blocks begin; build the "
                "engine again with this version"
            ) from None
        self._parts = {
            name: _Part(
                open_session(
                    onnxruntime,
                    graph,
                    self.provider,
                    session_options(onnxruntime, threads),
                    part=part.SerializeToString(),
                )
            )
            for name, part in parts.items()
        }

    @takes_odd_sizes
    def bind(self, inputs: Inputs) -> Denoiser:
        """For one request from its first step on: what is kept is that request's."""
        check_process(self._pid, "an engine of the backend onnxruntime")
        given, lossy, step = BoundInputs(self._ort, inputs, self.provider), self.lossy, -1
        if lossy.reuses_keys:
            check_apart(inputs)
            self._add_no_video(given, inputs)
        if lossy.skips_blocks:
            given.add(cut.PREVIOUS, np.zeros((1, 1, 1), np.float32))

        def part(name: str, time: int) -> None:
            self.runs[name] += 1
            self._parts[name](given, time)

        def denoise(latents: Tensor, time: int) -> Tensor:
            nonlocal step
            step += 1
            given.set(latents, time)
            if lossy.reuses_keys and step % lossy.keys_every == 0:
                part("keys", time)
            if not lossy.skips_blocks:
                part("whole", time)
            else:
                part("first", time)
                change = float(given.values[cut.CHANGE].numpy())
                if step == 0 or not change <= lossy.skip_below:
                    part("rest", time)
                    given.values[cut.PREVIOUS] = given.values[cut.RESIDUAL]
                part("head", time)
            return torch.from_numpy(given.values[OUTPUT].numpy())

        return denoise

    def describe(self) -> dict[str, str]:
        return described(self._ort, self.provider, self.threads) | {"lossy": str(self.lossy)}

    def _add_no_video(self, given: BoundInputs, inputs: Inputs) -> None:
        """Add what groups are gathered from in place of a video that none of them names."""
        frames, rows, columns = inputs.shape[3], *inputs.tensors["bias_tiles"].shape
        heads = (self.config.num_heads, self.config.head_dim)
        shape = (inputs.shape[0] * inputs.shape[1], frames * rows * columns, *heads)
        first, *_ = video_of(0)
        given.add(first, np.zeros(shape, np.float32))
        for block in range(self.config.num_layers):
            for name in video_of(block):
                given.values[name] = given.values[first]


class _Part:
    """A session that reads what it needs of a request's values, and leaves there what it makes."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs = [value.name for value in session.get_inputs()]
        self.outputs = [value.name for value in session.get_outputs()]

    def __call__(self, given: BoundInputs, time: int) -> None:
        binding = self.session.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, given.values[name])
        for name in self.outputs:
            binding.bind_output(name, given.device)
        run(self.session, binding, time)
        given.values |= dict(zip(self.outputs, binding.get_outputs(), strict=True))


def check_apart(inputs: Inputs) -> None:
    """Raise LumosXError where references see the video, so that their keys are not apart from it.

    (Layouts without relational visibility.)
    """
    index, mask = inputs.tensors["group_index"], inputs.tensors["group_mask"]
    frames = inputs.shape[3]
    has_video = ((index < frames) & mask).any(-1)
    has_reference = ((index >= frames) & mask).any(-1)
    if (has_video & has_reference).any():
        raise Unsupported(
            "lossy keys: references see the video here (relational visibility is off), so their "
            "keys change with it; load the engine without"
        )

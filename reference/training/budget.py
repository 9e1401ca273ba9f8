"""What a training run needs, computed before it starts: memory, arithmetic, time.

Activations are counted, not guessed: models of two and three blocks are run on tensors without
memory, and what autograd would keep is added up; blocks are alike, so the rest is a straight line.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import TooLittleMemory
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure, structure_of
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.training.precision import in_precision, ops_of
from lumosx_rt.reference.training.recipe import Recipe, Stage

FLOAT_BYTES = 4
PROBE_SIZE = 4096  # of the matrices that a GPU is timed with


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one process needs. All memory in bytes; steps as in the heaviest stage."""

    parameters: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activations_bytes: int
    """As the recipe says, with or without checkpointing."""
    kept_activations_bytes: int
    """Without checkpointing."""
    checkpointed_activations_bytes: int
    available_bytes: int
    tokens: int
    tflop: float
    """Forward and backward of one step, recomputation included."""
    seconds_per_step: float | None
    """On a GPU: from the speed of a matrix product, measured now. None: measured while training."""
    steps: int
    device: str

    @property
    def needed_bytes(self) -> int:
        fixed = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.ema_bytes
        return fixed + self.activations_bytes

    def must_fit(self) -> None:
        """Raise LumosXError if the memory is too small."""
        if self.needed_bytes > self.available_bytes:
            kept, less = self.kept_activations_bytes, self.checkpointed_activations_bytes
            remedy = (
                f"turn checkpointing on (saves {(kept - less) / 2**30:.1f} GiB)"
                if self.activations_bytes > less
                else "take fewer streams, seeds or frames, or a smaller model"
            )
            raise TooLittleMemory(f"training does not fit: {self}; {remedy}")

    def __str__(self) -> str:
        gib = {
            "weights": self.weights_bytes,
            "gradients": self.gradients_bytes,
            "optimizer": self.optimizer_bytes,
            "average": self.ema_bytes,
            "activations": self.activations_bytes,
        }
        parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in gib.items())
        seconds = self.seconds_per_step
        pace = (
            "seconds per step: measured after 3 steps"
            if seconds is None
            else f"about {seconds:.2f} s per step, {self.steps * seconds / 3600:.1f} h"
        )
        return (
            f"{self.parameters / 1e6:.1f}M parameters, {self.needed_bytes / 2**30:.2f} of "
            f"{self.available_bytes / 2**30:.2f} GiB on {self.device} ({parts}); {self.tokens:,} "
            f"tokens and {self.tflop:.3g} TFLOP per step; {self.steps} steps, {pace}"
        )


def plan(recipe: Recipe, references: int, device: str = "cpu", processes: int = 1) -> Plan:
    """Return what a run needs in each of `processes` processes; references: of the largest
    scene."""
    with torch.device("meta"):
        names = dict(LumosX(recipe.model).named_parameters())
    count = sum(p.numel() for p in names.values())
    hidden = sum(
        p.numel() for n, p in names.items() if n.startswith("blocks.") and n.endswith("weight")
        and p.dim() == 2
    )  # fmt: skip
    moments = 2 * count - (hidden if recipe.optimizer == "muon" else 0)
    cost = max(
        (_cost(recipe, stage, references, processes, device) for stage in recipe.stages), key=sum
    )
    kept, checkpointed, flop, tokens = cost
    return Plan(
        parameters=count,
        weights_bytes=FLOAT_BYTES * count,
        gradients_bytes=FLOAT_BYTES * count * (2 if processes > 1 else 1),  # buckets of all-reduce
        optimizer_bytes=FLOAT_BYTES * moments,
        ema_bytes=FLOAT_BYTES * count,
        activations_bytes=checkpointed if recipe.checkpointing else kept,
        kept_activations_bytes=kept,
        checkpointed_activations_bytes=checkpointed,
        available_bytes=available_bytes(device),
        tokens=tokens,
        tflop=flop / 1e12,
        seconds_per_step=flop / _speed(device, recipe.bf16) if device.startswith("cuda") else None,
        steps=recipe.steps,
        device=device,
    )


def available_bytes(device: str) -> int:
    """Free memory of a device: of a GPU, or of this machine."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def activations(run: Callable[[], Any], parameters: list[Tensor]) -> int:
    """Return the bytes that autograd keeps of a forward pass for its backward pass, without
    `parameters`."""
    known = {p.untyped_storage()._cdata for p in parameters}
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            storages[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total


def _cost(
    recipe: Recipe, stage: Stage, references: int, processes: int, device: str
) -> tuple[int, int, int, int]:
    """Activations kept, and with checkpointing; floating-point operations; tokens."""
    streams, seeds = max(stage.streams // processes, 1), stage.seeds
    if not recipe.relational_visibility:
        streams, seeds = streams * seeds, 1
    frames, rows, columns = recipe.size.grid
    frames = stage.latent_frames or frames
    layout = SceneLayout(video_frames=frames, height=rows, width=columns, lone=references)
    models = {n: replace(recipe.model, num_layers=n) for n in (2, 3)}
    runs = {
        n: _forward(model, recipe.bf16, (layout,) * streams, seeds, recipe.size, device)
        for n, model in models.items()
    }
    block, block_flop = (runs[3][i] - runs[2][i] for i in range(2))
    more = recipe.model.num_layers - 2
    kept, flop = (runs[2][i] + more * d for i, d in enumerate((block, block_flop)))
    tokens = streams * (seeds * frames + references) * rows * columns
    # a block's input: the residual stream, and what the block before left to be added
    width = FLOAT_BYTES + (2 if recipe.bf16 else FLOAT_BYTES)
    inputs = tokens * recipe.model.dim * width
    checkpointed = kept - (recipe.model.num_layers - 1) * max(block - inputs, 0)
    passes = 4 if recipe.checkpointing else 3
    return kept, checkpointed, passes * flop, tokens


@cache
def _forward(
    config: LumosXConfig,
    bf16: bool,
    layouts: tuple[SceneLayout, ...],
    seeds: int,
    size: VideoSize,
    device: str,
) -> tuple[int, int]:
    """Return the bytes kept and operations of one forward pass, on tensors without memory."""
    structure = structure_of(layouts, config.head_dim)
    streams, references = structure.group_inverse.shape
    frames = structure.rope_video.shape[1]
    _, rows, columns = size.latent
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = in_precision(config, bf16, "cpu")
        model.ops = ops_of(bf16, device)
        x = torch.empty(streams, seeds, config.in_dim, frames, rows, columns)
        text = torch.empty(streams, config.text_len, config.text_dim)
        pictures = torch.empty(streams, references, config.in_dim, rows, columns)
        template = torch.empty(streams, references, config.text_len)
        fake = Structure(*(torch.empty_like(t) for t in structure))
        time_ = torch.zeros(streams, dtype=torch.long)
        counter: Any = FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention})

        def run() -> Tensor:
            with counter:
                return model(x, time_, text, pictures, template, fake)

        kept = activations(run, list(model.parameters()))
    return kept, int(counter.get_total_flops())


def _attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **options: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch does not count


def _speed(device: str, bf16: bool) -> float:
    """Floating-point operations a second of a matrix product on a GPU, at the best of three."""
    a = torch.ones(
        PROBE_SIZE, PROBE_SIZE, device=device, dtype=torch.bfloat16 if bf16 else torch.float32
    )
    best = float("inf")
    for _ in range(4):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        a @ a
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * PROBE_SIZE**3 / best

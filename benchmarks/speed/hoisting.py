"""What would be saved by computing text keys, values and modulations once a request, not a step?

    python -m benchmarks.speed.hoisting -o benchmarks/results/hoisting.json

Times of the reference on a CPU, interleaved: a whole step of both guidance branches, and in it the
parts that do not depend on the latents: text embedding with every block's text keys and values
(the same for all steps), time embedding with every block's modulation (known beforehand for each
step). Their share bounds the gain.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import keep
from lumosx_rt.artifact.source import random_transformer
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import MAX_TIME, Block
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.inputs import random_inputs

LAYOUT = "5x15x26+0+4.4.4"
CONFIG = LumosXConfig(dim=512, ffn_dim=2048, num_heads=8, num_layers=8, text_dim=512, text_len=256)


@torch.inference_mode()
def measure(rounds: int) -> dict[str, Any]:
    model = random_transformer(CONFIG, 0)
    layout = SceneLayout.from_key(LAYOUT)
    latents, times, inputs = random_inputs(CONFIG, [layout, layout], 1)
    text = inputs.tensors["text"]
    table = model.get_buffer("time_table")
    assert times.max() <= MAX_TIME

    blocks = [block for block in model.blocks if isinstance(block, Block)]

    def words() -> None:
        known = model.text_embedding(text)
        for block in blocks:
            block.cross_attn.project(known, "k", None, model.ops)
            block.cross_attn.project(known, "v", None, model.ops)

    def modulations() -> None:
        e = model.time_projection(model.time_embedding(table[times])).unflatten(1, (6, -1))
        for block in blocks:
            (block.modulation + e).unsqueeze(2).unbind(1)

    parts: dict[str, Callable[[], Any]] = {
        "step": lambda: model(latents, times, *inputs.arguments()),
        "text_keys_and_values": words,
        "modulations": modulations,
    }
    found: dict[str, list[float]] = {name: [] for name in parts}
    for i in range(rounds + 1):
        for name, run in parts.items():
            begun = time.perf_counter()
            run()
            if i:
                found[name].append(time.perf_counter() - begun)
    shares = {
        name: sorted(a / b for a, b in zip(found[name], found["step"], strict=True))
        for name in list(parts)[1:]
    }
    return {
        "layout": LAYOUT,
        "dim": CONFIG.dim,
        "blocks": CONFIG.num_layers,
        "text_len": CONFIG.text_len,
        "median_ms": {name: round(1e3 * statistics.median(x), 3) for name, x in found.items()},
        "share_of_step": {name: round(statistics.median(x), 5) for name, x in shares.items()},
        "share_range": {name: [round(x[0], 5), round(x[-1], 5)] for name, x in shares.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    keep(measure(arguments.rounds), arguments.out)


if __name__ == "__main__":
    main()

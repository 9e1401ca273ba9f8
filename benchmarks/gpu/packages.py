"""Stages small_package and full_package: a model compiled ahead of time, run by another process.

What a package gives is judged against the same model, eager, in the process that loads it: every
layout from one package, several streams and seeds, and a graph that is replayed at another time.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.book import Row
from benchmarks.gpu.cases import Bench, Case
from benchmarks.gpu.forward import ROOT, in_e4m3, random_model
from benchmarks.gpu.problem import WrongOutput, relative_error
from benchmarks.gpu.scale import Scale, full, rehearsal
from benchmarks.gpu.timing import time_of
from lumosx_rt.export.aoti import compile_package
from lumosx_rt.kernels.fused import fused_ops, named
from lumosx_rt.reference.backbones.ops import REFERENCE, Ops
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.inputs import random_inputs

KINDS = ("bf16", "fp8", "fp8 attention")
BLOCKS = 2
MOST = 2.0  # times what the eager model in half precision errs against float32
TIMES = (500, 400)


def small(bench: Bench) -> Iterator[Case]:
    # interpreted, a forward takes minutes: a rehearsal runs the reference, once
    for kind in KINDS[:1] if bench.scale.rehearsal else KINDS:
        yield Case(kind, f"{BLOCKS} blocks", partial(_made, bench, kind, BLOCKS, 2))


def whole(bench: Bench) -> Iterator[Case]:
    blocks = bench.scale.config.num_layers
    yield Case("bf16", f"{blocks} blocks", partial(_made, bench, "bf16", blocks, 1))


def model_of(scale: Scale, kind: str, blocks: int) -> tuple[LumosX, Ops]:
    """Draw a model, the same in every process, and the operations that it runs on."""
    scale = replace(scale, config=replace(scale.config, num_layers=blocks))
    model = random_model(scale, torch.bfloat16)
    if scale.rehearsal:
        return model, REFERENCE
    if kind != "bf16":
        model = in_e4m3(model)
    ops = fused_ops(
        torch.cuda.get_device_capability(scale.device),
        head_dim=scale.config.head_dim,
        e4m3_rows=kind != "bf16",
        e4m3_attention=kind == "fp8 attention",
    )
    return model, ops


def _made(bench: Bench, kind: str, blocks: int, seeds: int) -> Row:
    """Compile a package, and let another process judge it."""
    path = bench.out / f"{kind.replace(' ', '-')}-{blocks}.pt2"
    found: Row = {"self_attention": "triton, e4m3"}
    if kind != "fp8 attention":
        capability = (9, 0) if bench.scale.rehearsal else torch.cuda.get_device_capability()
        found["self_attention"] = named("auto", capability)
    try:
        if not bench.scale.rehearsal:  # a compiler for CPUs has nothing to say of this
            model, ops = model_of(bench.scale, kind, blocks)
            found |= compile_package(model, path, ops=ops)
            found["megabytes"] = round(path.stat().st_size / 1e6)
            del model
            torch.cuda.empty_cache()
        return found | _by_another_process(path, kind, blocks, seeds, bench.scale.rehearsal)
    finally:
        path.unlink(missing_ok=True)


def _by_another_process(path: Path, kind: str, blocks: int, seeds: int, rehearse: bool) -> Row:
    words = [str(path), kind, str(blocks), str(seeds), *["--rehearse"] * rehearse]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.packages", *words],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"the process that loads it failed: {last}")
    found: Row = json.loads(done.stdout.splitlines()[-1])
    worst = max(layout["ratio"] for layout in found["layouts"])
    if not worst <= MOST:
        raise WrongOutput(f"a layout errs {worst:.1f} times as much as the eager model")
    return found


@torch.no_grad()
def judged(path: Path, kind: str, blocks: int, seeds: int, scale: Scale) -> dict[str, Any]:
    """Load a package, compare it with the eager model over layouts, and time its steps."""
    from lumosx_rt.backends.torch.run import TorchBackend
    from lumosx_rt.reference.sampling.eager import EagerBackend

    model, ops = model_of(scale, kind, blocks)
    model.ops = ops
    small_scale = replace(scale, config=replace(scale.config, num_layers=blocks))
    wide = random_model(small_scale, torch.float32) if blocks <= BLOCKS else None
    eager = EagerBackend(model)
    backend = eager if scale.rehearsal else TorchBackend(path, "cuda")
    layouts = []
    for key in scale.keys(0, 4, 16):
        streams = [SceneLayout.from_key(key)] * 2
        latents, _, inputs = random_inputs(scale.config, streams, seeds)
        run = backend.bind(inputs)
        found: dict[str, Any] = {"layout": key, "seeds": seeds, "ratio": 0.0}
        for time in TIMES:  # the second is replayed
            got = run(latents, time).clone()
            expected = eager.bind(inputs)(latents, time)
            if not got.isfinite().all():
                raise WrongOutput(f"{key}: values that are not finite at time {time}")
            error = relative_error(got, expected)
            if wide is None:  # the whole model: the same kernels, in another order of launches
                own = 1e-2
            else:
                exact = EagerBackend(wide).bind(inputs)(latents, time)
                error, own = relative_error(got, exact), relative_error(expected, exact)
            found |= {"error": error, "plain_error": own}
            found["ratio"] = max(found["ratio"], error / max(own, 1e-30))
        found |= time_of(partial(run, latents, TIMES[0]), scale.device)
        if scale.device.type == "cuda":
            found["reserved_gib"] = round(torch.cuda.memory_reserved() / 2**30, 2)
        layouts.append(found)
    return {"layouts": layouts}


def main() -> None:
    path, kind, blocks, seeds, *rehearse = sys.argv[1:]
    scale = rehearsal() if rehearse else full()
    print(json.dumps(judged(Path(path), kind, int(blocks), int(seeds), scale)))


if __name__ == "__main__":
    main()

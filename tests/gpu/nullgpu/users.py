"""Stages of the null GPU that are what users do: a request, a service, training, the GPU suite."""

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.gpu.nullgpu.counts import GIB, Facts, counted


def engine(folder: str) -> Facts:
    """Build a small engine for the GPU, load it, and make videos: all of it on the device."""
    import lumosx_rt as rt
    from lumosx_rt.reference.scenes.builtin import builtin_scenes

    checkpoint, where = small_checkpoint(Path(folder)), {}
    with ExitStack() as stack:
        unjudged(stack)
        built = rt.build(checkpoint, Path(folder, "engine"), backend="torch", device="cuda")
        loaded = rt.load(built, components=checkpoint)
        used = torch.cuda.memory_allocated
        for scene in builtin_scenes():
            before = counted("launches") + counted("driver_launches")
            request = loaded.prepare(scene, size=rt.VideoSize(9, 64, 144), steps=2, seeds=[1, 2])
            prepared = counted("launches") + counted("driver_launches")
            *_, state = loaded.sample(request)
            sampled = counted("launches") + counted("driver_launches")
            videos = loaded.decode(request, state.latents)
            decoded = counted("launches") + counted("driver_launches")
            assert [video.frames.shape for video in videos] == [(9, 64, 144, 3)] * 2
            where[request.name] = [prepared - before, sampled - prepared, decoded - sampled]
        devices = {part: device_of(getattr(loaded, part)) for part in ("vae", "text_encoder")}
        with loaded.serve(together=2) as service:
            scenes = builtin_scenes() * 2
            futures = [
                service.submit(scene, size=rt.VideoSize(9, 64, 144), steps=2, seeds=[i])
                for i, scene in enumerate(scenes)
            ]
            served = sum(len(future.result(timeout=300)) for future in futures)
    return {
        "launches": where,  # to prepare, sample and decode
        "devices": devices,
        "served": served,
        "self_attention": (Path(built, "report.json").read_text().find("hybrid") > 0),
        "allocated_gib": round(used() / GIB, 3),
    }


def device_of(encoder: Any) -> str:
    """The device of whatever module is inside an encoder."""
    seen, todo = set(), [encoder]
    while todo:
        found = todo.pop()
        if isinstance(found, torch.nn.Module):
            return str({p.device.type for p in found.parameters()})
        if id(found) not in seen and hasattr(found, "__dict__"):
            seen.add(id(found))
            todo += vars(found).values()
    return "none"


def small_checkpoint(folder: Path) -> Path:
    """A checkpoint of two blocks with heads of 32, and small encoders."""
    from lumosx_rt.artifact.defaults import SMALL
    from lumosx_rt.artifact.source import random_transformer
    from lumosx_rt.reference.backbones.config import PRESETS
    from lumosx_rt.reference.backbones.saving import save_bundle
    from lumosx_rt.reference.encoders.random import random_components

    config = replace(PRESETS["tiny"], num_layers=2)
    text_encoder, tokenizer, vae = random_components(0)
    save_bundle(
        folder / "checkpoint",
        transformer=random_transformer(config, 0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        defaults=SMALL,
    )
    return folder / "checkpoint"


def unjudged(stack: ExitStack) -> None:
    """Switch off what judges values, for there are none: parity of builds, flat and lost videos."""
    from lumosx_rt.builder import build
    from lumosx_rt.runtime import engine, video

    stack.enter_context(patch.object(build, "forward_parity", lambda *given: []))
    stack.enter_context(patch.object(engine, "check_binding", lambda *given: None))
    for name in ("latents_are_flat", "is_flat"):
        stack.enter_context(patch.object(video, name, lambda values: False))


def training(folder: str) -> Facts:
    """Train three steps of a model of full width and two blocks, killed and resumed."""
    from benchmarks.gpu.scale import full
    from benchmarks.robustness import toy
    from lumosx_rt.reference.training.latents import build_cache
    from lumosx_rt.reference.training.loop import train
    from lumosx_rt.reference.training.recipe import Recipe, Stage

    source = toy.Toy(6, name="one")
    cache = build_cache(Path(folder, "cache"), source, toy.SIZE, *toy.encoders())
    config = replace(
        full().config, num_layers=2, text_dim=toy.CONFIG.text_dim, text_len=toy.CONFIG.text_len
    )
    stage = Stage(name="first", steps=3, data=source, streams=2, seeds=2)
    recipe = Recipe(
        stages=(stage,), model=config, size=toy.SIZE, warm_up=2, log_every=1, save_every=1,
        bf16=True, checkpointing=True,
    )  # fmt: skip

    class Killed(Exception):
        pass

    def kill(told: Any) -> None:
        if told.step == 1:
            raise Killed

    options: dict[str, Any] = {"caches": {"one": cache}, "device": "cuda"}
    before = counted("launches")
    try:
        train(recipe, Path(folder, "run"), progress=kill, **options)
    except Killed:
        pass
    steps: list[int] = []
    averaged = train(
        recipe, Path(folder, "run"), progress=lambda told: steps.append(told.step), **options
    )
    return {
        "launches": counted("launches") - before,
        "resumed_at": steps[0],
        "steps": steps[-1] + 1,
        "averaged_on": str({p.device.type for p in averaged.parameters()}),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
    }


def suite(folder: str, *calls: str) -> Facts:
    """Run calls of `benchmarks.gpu`, at full size; count the rows of every stage, and failures."""
    rows: dict[str, int] = {}
    failed: dict[str, str] = {}
    for call in calls:
        command = [sys.executable, "-m", "benchmarks.gpu.run", call, "-o", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for line in Path(folder, "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["stage"]] = rows.get(row["stage"], 0) + 1
        if "failed" in row:
            said = row["failed"].replace(folder, "OUT")[:200]
            failed[f"{row['stage']}: {row['name']} {row['shape']}"] = said
    return {"calls": list(calls), "rows": rows, "failed": failed}

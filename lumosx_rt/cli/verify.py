"""`lumosx-rt verify`, as a command."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lumosx_rt.cli.arguments import (
    Checkpoint,
    Components,
    Frames,
    Height,
    Json,
    Provider,
    Trust,
    Width,
    check_sampling,
    loaded_engine,
    video_size,
)
from lumosx_rt.cli.console import progress_bar, reasons, refuse, result, say


def verify(
    engine: Annotated[Path, typer.Argument(help="Engine folder.")],
    scenes: Annotated[
        list[Path] | None, typer.Argument(help="Scenes to compare on [three built-in ones].")
    ] = None,
    checkpoint: Checkpoint = None,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 8,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed; give the option again for several.")
    ] = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    components: Components = None,
    provider: Provider = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Compare an engine with the PyTorch reference from the same noise, and write its report.

    Exit code 1 if the final latents differ by more than the gate, are not finite, or the video is
    flat. Example: `lumosx-rt verify engines/tiny samples/drawn/two`
    """
    with reasons("the engine's report is as it was"):
        from lumosx_rt.parity.verify import verify as verify_engine
        from lumosx_rt.reference.places import try_place
        from lumosx_rt.reference.scenes.builtin import builtin_scenes
        from lumosx_rt.reference.scenes.scene import Scene
        from lumosx_rt.runtime.folder import find_scenes

        seeds = tuple(seed or (0,))
        check_sampling(steps, None, None, seeds)
        try_place(Path(os.path.abspath(engine), "report.json"))
        chosen = [Scene.load(path) for path in find_scenes(scenes)] if scenes else builtin_scenes()
        say(f"loading {engine}")
        loaded = loaded_engine(engine, components, provider, trust, unverified=True)
        with progress_bar("verify") as progress:
            section = verify_engine(
                loaded,
                chosen,
                checkpoint=checkpoint,
                size=video_size(loaded.manifest.defaults, frames, height, width),
                steps=steps,
                seeds=seeds,
                progress=progress,
            )
        result((engine / "report.md").read_text("utf-8"), section, as_json)
        if not section["passed"]:
            refuse(f"{engine} does not make the same video as the reference; see report.md")

"""`lumosx-rt generate`, as a command."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lumosx_rt.cli.arguments import (
    Components,
    Frames,
    Height,
    Json,
    LossyKeys,
    LossySkip,
    Provider,
    Trust,
    Width,
    check_choice,
    check_sampling,
    loaded_engine,
    shortcuts,
    video_size,
)
from lumosx_rt.cli.console import progress_bar, reasons, refuse, result, say


def generate(
    engine: Annotated[Path, typer.Argument(help="Engine folder.")],
    scenes: Annotated[
        list[Path], typer.Argument(help="Prompt folders, scene.toml files, or folders of them.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for videos.")] = Path("out"),
    steps: Annotated[int | None, typer.Option(help="Solver steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 switches guidance off.")
    ] = None,
    shift: Annotated[float | None, typer.Option(help="Shift of the noise levels.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed; give the option again for several videos.")
    ] = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Negative prompt [Wan2.1's].")] = None,
    order: Annotated[
        str, typer.Option(help="stable, or listing (as the file system lists, as released).")
    ] = "stable",
    script: Annotated[str, typer.Option(help="subject, or face (faces only).")] = "subject",
    components: Components = None,
    provider: Provider = "auto",
    trust: Trust = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory limit of the process, like 8GiB. Requests are adapted to it, or refused."
        ),
    ] = None,
    max_device_memory: Annotated[
        str | None,
        typer.Option(help="The same of a GPU's own memory [what is free there]."),
    ] = None,
    encoders_device: Annotated[
        str, typer.Option(help="Where text encoder and VAE run: auto, cpu or cuda.")
    ] = "auto",
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Use an engine whose last check failed.")
    ] = False,
    lossy_keys: LossyKeys = 1,
    lossy_skip: LossySkip = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite videos.")] = False,
    as_json: Json = False,
) -> None:
    """Make videos of scenes: NAME.mp4, and NAME.png with the references beside frames.

    If a scene fails, it is reported and the others are still made; the exit code is 1.

    Example: `lumosx-rt generate engines/tiny samples/drawn/two --seed 0 --seed 1 -o out`
    """
    check_choice("--order", order, ("stable", "listing"))
    check_choice("--script", script, ("subject", "face"))
    check_choice("--encoders-device", encoders_device, ("auto", "cpu", "cuda"))
    with reasons("videos that were finished are kept, nothing half-made is left"):
        from lumosx_rt.reference.scenes.scene import Scene
        from lumosx_rt.runtime.folder import Outcome, check_folder, find_scenes, generate_all

        seeds = tuple(seed or (0,))
        check_sampling(steps, guidance, shift, seeds)
        paths, lossy = find_scenes(scenes), shortcuts(lossy_keys, lossy_skip)
        check_folder(out)
        say(f"loading {engine}")
        loaded = loaded_engine(
            engine, components, provider, trust, max_memory, unverified, lossy,
            max_device_memory=max_device_memory, encoders_device=encoders_device,
        )  # fmt: skip
        if loaded.manifest.checkpoint.get("source") == "random":
            say("note: this engine has random weights; its videos are noise in colour, by design")
        if known := loaded.manifest.defaults.get("trained_for"):
            say(f"note: this checkpoint knows {known}")
        settings: dict[str, Any] = {
            "size": video_size(loaded.manifest.defaults, frames, height, width),
            "steps": steps,
            "guidance": guidance,
            "shift": shift,
            "seeds": seeds,
            "negative_prompt": negative_prompt,
        }

        def load(path: Path) -> Scene:
            return Scene.load(path, order=order, script=script)  # type: ignore[arg-type]

        def checked(valid: Any) -> None:
            if valid.plan is not None:
                say(f"{valid.name}: memory: {valid.plan}")

        outcomes: list[Outcome] = []
        try:
            with progress_bar() as show:
                made = generate_all(
                    loaded,
                    paths,
                    out,
                    force=force,
                    load=load,
                    checked=checked,
                    waiting=say,
                    progress=lambda name, state: show(name, state.step, state.steps),
                    **settings,
                )
                for outcome in made:
                    outcomes.append(outcome)
        finally:  # also when it is stopped: what was made is told
            _tell(outcomes, as_json)
        failed = sum(outcome.error is not None for outcome in outcomes)
        if failed:
            refuse(f"{failed} of {len(outcomes)} scenes failed")


def _tell(outcomes: list[Any], as_json: bool) -> None:
    for outcome in outcomes:
        for warning in outcome.warnings:
            say(f"warning: {outcome.scene}: {warning}")
        if outcome.error:
            say(f"failed: {outcome.error}")
    made = [file for outcome in outcomes for file in outcome.files]
    if made or as_json:
        result("\n".join(made), [outcome.as_dict() for outcome in outcomes], as_json)

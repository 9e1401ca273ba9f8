"""The command line: `lumosx-rt build | generate | verify | bench | train | inspect | doctor`.

Thin: each command checks its words, calls one function of the package, and shows what comes back.
Nothing heavy is imported before a command runs.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lumosx_rt import __version__
from lumosx_rt.cli.arguments import check_provider, loaded_engine, shortcuts, video_size
from lumosx_rt.cli.build import build
from lumosx_rt.cli.calibrate import calibrate
from lumosx_rt.cli.console import progress_bar, reasons, refuse, result, say

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Compile a LumosX checkpoint into an engine, run it, and prove it makes the same video.",
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Components = Annotated[
    Path | None,
    typer.Option(help="Folder with text encoder, tokenizer and VAE, if the engine has none."),
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="The weights the engine was built from, if they were moved.")
]
Provider = Annotated[
    str,
    typer.Option(
        help="onnxruntime: auto (cuda where there is one, else cpu), cpu, cuda, tensorrt or "
        "tensorrt-rtx; an explicit one never falls back."
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run compiled code that was not made on this machine."),
]
LossyKeys = Annotated[
    int,
    typer.Option(
        help="LOSSY: references' keys and values at every so-manyth step only; 1 is exact."
    ),
]
LossySkip = Annotated[
    float,
    typer.Option(
        help="LOSSY: all blocks but the first skipped where its residual changed by at most this "
        "share, like 0.1; 0 is exact."
    ),
]
Frames = Annotated[int | None, typer.Option(help="Pixel frames, 1 + 4k.")]
Height = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")]
Width = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")]


def main() -> None:
    """The `lumosx-rt` program."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app(prog_name="lumosx-rt")


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(build)


@app.command()
def generate(
    engine: Annotated[Path, typer.Argument(help="Engine folder.")],
    scenes: Annotated[
        list[Path], typer.Argument(help="Prompt folders, scene.toml files, or folders of them.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for videos.")] = Path("out"),
    steps: Annotated[int | None, typer.Option(help="Solver steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    shift: Annotated[float | None, typer.Option(help="Shift of the noise levels.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Again for several videos.")] = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    negative_prompt: Annotated[str | None, typer.Option(help="[Wan2.1's]")] = None,
    order: Annotated[
        str, typer.Option(help="stable, or listing (as the file system lists, as released).")
    ] = "stable",
    script: Annotated[str, typer.Option(help="subject, or face (faces alone).")] = "subject",
    components: Components = None,
    provider: Provider = "auto",
    trust: Trust = False,
    max_memory: Annotated[
        str | None,
        typer.Option(help="What the process may hold, like 8GiB: requests adapt, or are refused."),
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Use an engine whose last check failed.")
    ] = False,
    lossy_keys: LossyKeys = 1,
    lossy_skip: LossySkip = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite videos.")] = False,
    as_json: Json = False,
) -> None:
    """Make videos of scenes: NAME.mp4, and NAME.png with the references beside frames.

    A scene that fails is reported, the others are made; the exit code is 1 then.

    Example: `lumosx-rt generate engines/tiny samples/two-friends --seed 0 --seed 1 -o out`
    """
    with reasons("videos that were finished are kept, nothing half-made is left"):
        from lumosx_rt.reference.scenes.scene import Scene
        from lumosx_rt.runtime.folder import find_scenes, generate_all

        paths, lossy = find_scenes(scenes), shortcuts(lossy_keys, lossy_skip)
        say(f"loading {engine}")
        loaded = loaded_engine(engine, components, provider, trust, max_memory, unverified, lossy)
        if loaded.manifest.checkpoint.get("source") == "random":
            say("note: this engine has random weights; its videos are noise in colour, by design")
        with progress_bar() as bar:
            tasks: dict[str, Any] = {}

            def progress(name: str, state: Any) -> None:
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=state.steps)
                bar.update(tasks[name], completed=state.step)

            settings: dict[str, Any] = {
                "size": video_size(loaded.manifest.defaults, frames, height, width),
                "steps": steps,
                "guidance": guidance,
                "shift": shift,
                "seeds": tuple(seed or (0,)),
                "negative_prompt": negative_prompt,
            }

            def load(path: Path) -> Scene:
                scene = Scene.load(path, order=order, script=script)  # type: ignore[arg-type]
                if max_memory is not None:
                    say(f"{scene.name}: memory: {loaded.plan(scene, **settings)}")
                return scene

            outcomes = generate_all(
                loaded, paths, out, force=force, load=load, progress=progress, **settings
            )
    for outcome in outcomes:
        for warning in outcome.warnings:
            say(f"warning: {outcome.scene}: {warning}")
        if outcome.error:
            say(f"failed: {outcome.error}")
    made = [file for outcome in outcomes for file in outcome.files]
    result("\n".join(made), [outcome.as_dict() for outcome in outcomes], as_json)
    failed = sum(outcome.error is not None for outcome in outcomes)
    if failed:
        refuse(f"{failed} of {len(outcomes)} scenes failed")


@app.command()
def verify(
    engine: Annotated[Path, typer.Argument(help="Engine folder.")],
    scenes: Annotated[
        list[Path] | None, typer.Argument(help="Scenes to compare on [three built-in ones].")
    ] = None,
    checkpoint: Checkpoint = None,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 8,
    seed: Annotated[list[int] | None, typer.Option(help="Again for several.")] = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    components: Components = None,
    provider: Provider = "auto",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Compare an engine with the PyTorch reference from the same noise; write its report.

    Exit code 1 if the final latents differ by more than the gate, are not finite, or the video is
    flat. Example: `lumosx-rt verify engines/tiny samples/two-friends`
    """
    with reasons("the engine's report is as it was"):
        from lumosx_rt.parity.verify import builtin_scenes
        from lumosx_rt.parity.verify import verify as verify_engine
        from lumosx_rt.reference.scenes.scene import Scene
        from lumosx_rt.runtime.folder import find_scenes

        chosen = [Scene.load(path) for path in find_scenes(scenes)] if scenes else builtin_scenes()
        say(f"loading {engine}")
        loaded = loaded_engine(engine, components, provider, trust, unverified=True)
        with progress_bar() as bar:
            task = bar.add_task("verify", total=None)

            def progress(what: str, done: int, of: int) -> None:
                bar.update(task, description=what, completed=done, total=of)

            section = verify_engine(
                loaded,
                chosen,
                checkpoint=checkpoint,
                size=video_size(loaded.manifest.defaults, frames, height, width),
                steps=steps,
                seeds=tuple(seed or (0,)),
                progress=progress,
            )
        result((engine / "report.md").read_text(), section, as_json)
        if not section["passed"]:
            refuse(f"{engine} does not make the same video as the reference; see report.md")


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(help="Engine folder, or a bundle (PyTorch reference).")],
    suite: Annotated[
        str, typer.Option(help="binding, stills, vae-ceiling, or speed (of an engine).")
    ] = "binding",
    scene_list: Annotated[
        str, typer.Option("--list", help="full (200), ci (12) or four (people).")
    ] = ("full"),
    scenes: Annotated[int | None, typer.Option(help="Only the first so many of the list.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder [out/bench-NAME-SUITE-LIST].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps [12; speed: its own].")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 is none [1; speed: the engine's].")
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="Shift of the noise levels [3; speed: the engine's].")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="speed: fewer points and runs.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="scenes.jsonl of another run, for paired differences.")
    ] = None,
    components: Components = None,
    provider: Provider = "auto",
    trust: Trust = False,
    lossy_keys: LossyKeys = 1,
    lossy_skip: LossySkip = 0.0,
    as_json: Json = False,
) -> None:
    """Make held-out scenes of the drawn world and see who wears what: rates with intervals.

    Or, as `--suite speed`, how long an engine takes. A run that was stopped goes on with the same
    command.

    Examples: `lumosx-rt bench engines/tiny --list ci`,
    `lumosx-rt bench checkpoints/tiny --suite vae-ceiling`,
    `lumosx-rt bench engines/tiny --suite speed`
    """
    check_provider(provider)
    with reasons("finished scenes are kept, the same command goes on from there"):
        from lumosx_rt.cli.bench import bench as run_bench
        from lumosx_rt.cli.bench import default_folder, told

        lossy = shortcuts(lossy_keys, lossy_skip)
        with progress_bar() as bar:
            task = bar.add_task("bench", total=None)

            def progress(name: str, done: int, of: int) -> None:
                bar.update(task, description=name, completed=done, total=of)

            summary = run_bench(
                model,
                out or default_folder(model, suite, scene_list, quick, lossy),
                suite=suite,
                scene_list=scene_list,
                scenes=scenes,
                sampling={"steps": steps, "shift": shift, "guidance": guidance},
                quick=quick,
                against=against,
                components=components,
                provider=provider,  # type: ignore[arg-type]  # checked above
                trust=trust,
                lossy=lossy,
                report=say,
                progress=progress,
            )
        result(told(summary), summary, as_json)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="tiny (the drawn world's LumosX, from nothing), or FILE.py:NAME.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the run [out/train-RECIPE].")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for recipes of your own.")] = "cpu",
    processes: Annotated[int, typer.Option(help="Workers that make latents.")] = 2,
    as_json: Json = False,
) -> None:
    """Train a recipe; its bundle is OUT/bundle, its metrics are lines of JSON in OUT.

    FILE.py is your own code and is run: its function NAME returns a `Recipe`
    (lumosx_rt.reference.training.recipe). A run that was stopped goes on with the same command.

    Examples: `lumosx-rt train tiny -o out/tiny`, `lumosx-rt train samples/recipe.py:two_phases`
    """
    with reasons("the last checkpoint is kept, the same command goes on from there"):
        from lumosx_rt.cli.train import train as run_training

        folder = out or Path("out", "train-" + recipe.rpartition(":")[2])
        with progress_bar() as bar:
            tasks: dict[str, Any] = {}

            def told(part: str, done: int, of: int, metrics: dict[str, float]) -> None:
                if part not in tasks:
                    tasks[part] = bar.add_task(part, total=of)
                values = "".join(f"  {name} {value:.3g}" for name, value in metrics.items())
                bar.update(tasks[part], description=part + values, completed=done)

            bundle = run_training(
                recipe, folder, device=device, processes=processes, report=say, told=told
            )
        result(str(bundle), {"bundle": str(bundle)}, as_json)


app.command()(calibrate)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Engine, scene, checkpoint, or a layout key.")],
    layout_png: Annotated[
        Path | None, typer.Option(help="Draw the layout: groups, who attends to whom, words.")
    ] = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    as_json: Json = False,
) -> None:
    """Say what something is. Exit code 1 if it is damaged, or a scene has errors.

    Examples: `lumosx-rt inspect samples/two-friends --layout-png layout.png`,
    `lumosx-rt inspect 21x30x52+1+4.4`
    """
    with reasons("nothing was changed"):
        from lumosx_rt.cli.inspect import as_text
        from lumosx_rt.cli.inspect import inspect as inspect_path

        size = video_size({"frames": 81, "height": 480, "width": 832}, frames, height, width)
        facts = inspect_path(path, size, layout_png)
        result(as_text(facts), facts, as_json)
        if facts.get("errors"):
            refuse(f"{path} has {len(facts['errors'])} errors")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do and what is missing; exit code 1 if something is.

    Example: `lumosx-rt doctor --json`
    """
    with reasons("nothing was changed"):
        from lumosx_rt.cli.doctor import examine
        from lumosx_rt.cli.inspect import as_text

        facts = examine()
        result(as_text(facts), facts, as_json)
        if facts["problems"]:
            refuse(f"{len(facts['problems'])} problems: run `make install` in the project's folder")

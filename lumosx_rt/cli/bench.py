"""`lumosx-rt bench`, as a command."""

from pathlib import Path
from typing import Annotated

import typer

from lumosx_rt.cli.arguments import (
    Components,
    Json,
    LossyKeys,
    LossySkip,
    Provider,
    Trust,
    check_provider,
    check_sampling,
    shortcuts,
)
from lumosx_rt.cli.console import progress_bar, reasons, result, say


def bench(
    model: Annotated[Path, typer.Argument(help="Engine folder, or a bundle (PyTorch reference).")],
    suite: Annotated[
        str, typer.Option(help="binding, stills, vae-ceiling, or speed (of an engine).")
    ] = "binding",
    scene_list: Annotated[
        str, typer.Option("--list", help="full (200), ci (12) or four (people).")
    ] = ("full"),
    scenes: Annotated[int | None, typer.Option(help="Only the first N scenes of the list.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder [out/bench-NAME-SUITE-LIST].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps [12; speed: its own].")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale; 1 switches guidance off [1; speed: the engine's]."),
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
    """Measure who wears what in held-out scenes of the drawn world: rates with intervals.

    With `--suite speed`, measure how long an engine takes. A stopped run continues with the same
    command.

    Examples: `lumosx-rt bench engines/tiny --list ci`,
    `lumosx-rt bench checkpoints/tiny --suite vae-ceiling`,
    `lumosx-rt bench engines/tiny --suite speed`
    """
    check_provider(provider)
    with reasons("finished scenes are kept, the same command goes on from there"):
        from lumosx_rt.bench.run import benchmark, default_folder, told

        check_sampling(steps, guidance, shift)
        lossy = shortcuts(lossy_keys, lossy_skip)
        with progress_bar("bench") as progress:
            summary = benchmark(
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

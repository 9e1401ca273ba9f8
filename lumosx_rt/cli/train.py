"""`lumosx-rt train`, as a command."""

from pathlib import Path
from typing import Annotated

import typer

from lumosx_rt.cli.arguments import Json
from lumosx_rt.cli.console import progress_bar, reasons, result, say


def train(
    recipe: Annotated[
        str, typer.Argument(help="tiny (the drawn world's LumosX, from nothing), or FILE.py:NAME.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the run [out/train-RECIPE].")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for recipes of your own.")] = "cpu",
    processes: Annotated[int, typer.Option(help="Worker processes that make latents.")] = 2,
    as_json: Json = False,
) -> None:
    """Train a recipe. Writes the bundle to OUT/bundle and metrics as lines of JSON to OUT.

    FILE.py is your own code and is run: its function NAME returns a `Recipe`
    (lumosx_rt.reference.training.recipe). A stopped run continues with the same command.

    Examples: `lumosx-rt train tiny -o out/tiny`,
    `lumosx-rt train examples/recipes/two_phases.py:two_phases`
    """
    with reasons("the last checkpoint is kept, the same command goes on from there"):
        from lumosx_rt.builder.train import train as run_training

        folder = out or Path("out", "train-" + recipe.rpartition(":")[2])
        with progress_bar() as progress:
            bundle = run_training(
                recipe, folder, device=device, processes=processes, report=say, progress=progress
            )
        result(str(bundle), {"bundle": str(bundle)}, as_json)

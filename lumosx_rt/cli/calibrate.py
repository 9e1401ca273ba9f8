"""`lumosx-rt calibrate`, as a command."""

from pathlib import Path
from typing import Annotated

import typer

from lumosx_rt.cli.arguments import check_sampling
from lumosx_rt.cli.console import progress_bar, reasons, result, say


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Checkpoint with text encoder and VAE.")],
    scenes: Annotated[
        str, typer.Option(help="Name of a list, its JSON file, or a folder of prompt folders.")
    ] = "world-v1",
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path(
        "calibration.json"
    ),
    budget: Annotated[
        float, typer.Option(help="Least signal-to-noise ratio of the velocity in dB.")
    ] = 20.0,
    steps: Annotated[int | None, typer.Option(help="Solver steps [the bundle's].")] = None,
    bins: Annotated[int, typer.Option(help="Timestep bins.")] = 4,
    count: Annotated[int | None, typer.Option(help="Only the first N scenes.")] = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the observed model: fp32 or bf16.")
    ] = "fp32",
    weights: Annotated[
        str, typer.Option(help="One weight scale per channel, or per tensor.")
    ] = "channel",
    activations: Annotated[
        str,
        typer.Option(
            help="One activation scale per tensor (calibrated), or per row (computed while "
            "running)."
        ),
    ] = "tensor",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace what is at OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Observe a checkpoint over scenes and choose what runs in FP8: calibration.json.

    A stopped run continues with the same command.

    Example: `lumosx-rt calibrate checkpoints/tiny --scenes world-v1 -o calibration.json`
    """
    with reasons("finished scenes are kept, the same command goes on from there"):
        from lumosx_rt.builder import calibrate as calibrating
        from lumosx_rt.builder.train import check_device
        from lumosx_rt.calibration.scheme import Scheme
        from lumosx_rt.reference.places import place_of, try_place

        check_device(device)
        check_sampling(steps, None, None)
        try_place(place_of(out))

        with progress_bar("calibrate") as progress:
            found = calibrating.calibrate(
                bundle,
                out,
                scenes=scenes,
                count=count,
                steps=steps,
                bins=bins,
                budget=budget,
                precision=precision,  # type: ignore[arg-type]  # checked there
                scheme=Scheme(weights, activations),  # type: ignore[arg-type]  # checks itself
                device=device,
                force=force,
                report=say,
                progress=progress,
            )
        result(calibrating.told(found, out), calibrating.shown(found, out), as_json)

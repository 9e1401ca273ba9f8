"""`lumosx-rt build`, as a command."""

from pathlib import Path
from typing import Annotated

import typer

from lumosx_rt.cli.arguments import largest_size, transformer_config
from lumosx_rt.cli.console import reasons, refuse, result, say


def build(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Released, Wan2.1 or diffusers layout, or a weights file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Engine folder [engines/NAME].")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, 1.3b or 14b, with --init.")] = None,
    init: Annotated[str | None, typer.Option(help="random: weights drawn from --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    backend: Annotated[
        str,
        typer.Option(
            help="auto (onnxruntime), onnxruntime, torch (compiled for this machine), "
            "tensorrt-rtx (a plan for named GPUs, built without one), or tensorrt (a plan "
            "for this machine's GPU)."
        ),
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16 (onnxruntime: weights in half; tensorrt, tensorrt-rtx), bf16 "
            "(torch, tensorrt, tensorrt-rtx) or fp8 (with --calibration) [fp32; for a GPU "
            "bf16]."
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="onnxruntime: operator set, 23 or 20 [23].")
    ] = None,
    device: Annotated[str | None, typer.Option(help="torch: auto, cpu or cuda [auto].")] = None,
    max_references: Annotated[
        int, typer.Option(help="Largest number of pictures in a scene.")
    ] = 16,
    targets: Annotated[
        str | None,
        typer.Option(help="tensorrt-rtx: kinds of GPU, separated by commas [sm_89,sm_120]."),
    ] = None,
    max_seeds: Annotated[
        int | None,
        typer.Option(
            help="tensorrt, tensorrt-rtx: largest number of videos of a scene at once [4]."
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            help="tensorrt, tensorrt-rtx: the largest video, FRAMESxHEIGHTxWIDTH [the "
            "checkpoint's own]."
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="fp8: the scales, from `lumosx-rt calibrate`.")
    ] = None,
    buckets: Annotated[
        str | None,
        typer.Option(help="tensorrt-rtx in fp8: largest number of pictures of each plan [4,16]."),
    ] = None,
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming",
            help="tensorrt, tensorrt-rtx: keep weights on the host, for GPUs too small for them.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="JSON file with the transformer's sizes, if the checkpoint has none."),
    ] = None,
    self_contained: Annotated[
        bool, typer.Option("--self-contained", help="Copy text encoder, tokenizer and VAE in.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build an engine from a checkpoint, or from a preset with random weights.

    Examples: `lumosx-rt build checkpoints/lumosx -o engines/lumosx`,
    `lumosx-rt build --preset tiny --init random -o engines/tiny`,
    `lumosx-rt build checkpoints/tiny -o engines/tiny-torch --backend torch`,
    `lumosx-rt build checkpoints/lumosx --backend tensorrt-rtx --targets sm_89 -o engines/rtx`,
    `lumosx-rt build checkpoints/lumosx --precision fp8 --calibration calibration.json`
    """
    if (preset is None) != (init is None) or init not in (None, "random"):
        refuse("--preset and --init random go together", 2)
    if (checkpoint is None) == (preset is None):
        refuse("name either a CHECKPOINT, or --preset with --init random", 2)
    with reasons("finished stages are kept, the same command goes on from there"):
        from lumosx_rt.builder.build import build as build_engine
        from lumosx_rt.reference.checkpoints.bundle import name_of

        target = out or Path("engines", preset or name_of(checkpoint or Path()))

        build_engine(
            checkpoint,
            target,
            preset=preset,
            seed=seed,
            backend=backend,
            precision=precision,
            opset=opset,
            device=device,
            targets=targets,
            max_references=max_references,
            max_seeds=max_seeds,
            max_size=largest_size(max_size),
            calibration=calibration,
            buckets=buckets,
            weight_streaming=weight_streaming,
            config=transformer_config(config),
            self_contained=self_contained,
            force=force,
            report=say,
        )
        from lumosx_rt.artifact.report import read_report

        facts = {"engine": str(target)} | read_report(target).get("build", {})
        result(str(target), facts, as_json)

"""`lumosx-rt inspect`, as a command."""

from pathlib import Path
from typing import Annotated

import typer

from lumosx_rt.cli.arguments import (
    Frames,
    Height,
    Json,
    Width,
    video_size,
)
from lumosx_rt.cli.console import reasons, refuse, result


def inspect(
    path: Annotated[Path, typer.Argument(help="Engine, scene, checkpoint, or a layout key.")],
    layout_png: Annotated[
        Path | None, typer.Option(help="Draw the layout: groups, who attends to whom, words.")
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(help="An engine that a scene is for: says what it reads of the caption."),
    ] = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    as_json: Json = False,
) -> None:
    """Describe an engine, scene, checkpoint or layout. Exit code 1 if it is damaged or has errors.

    Examples: `lumosx-rt inspect samples/two-friends --layout-png layout.png`,
    `lumosx-rt inspect 21x30x52+1+4.4`
    """
    with reasons("nothing was changed"):
        from lumosx_rt.runtime.describe import as_text, describe, for_people

        size = video_size({"frames": 81, "height": 480, "width": 832}, frames, height, width)
        facts = describe(path, size, layout_png, engine)
        result(as_text(for_people(facts)), facts, as_json)
        if facts.get("errors"):
            refuse(f"{path} has {len(facts['errors'])} errors")

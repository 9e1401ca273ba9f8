"""The program `lumosx-rt`: its commands in one table.

Each command is a thin file. It checks its words, calls one function of the package and shows what
comes back. Nothing heavy is imported before a command runs.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, get_type_hints

import typer
from typer.models import OptionInfo

from lumosx_rt.cli.bench import bench
from lumosx_rt.cli.build import build
from lumosx_rt.cli.calibrate import calibrate
from lumosx_rt.cli.console import OPTIONS, show_log
from lumosx_rt.cli.doctor import doctor
from lumosx_rt.cli.generate import generate
from lumosx_rt.cli.inspect import inspect
from lumosx_rt.cli.train import train
from lumosx_rt.cli.verify import verify
from lumosx_rt.reference.version import VERSION

COMMANDS: tuple[Callable[..., Any], ...] = (
    build,
    generate,
    verify,
    bench,
    calibrate,
    train,
    inspect,
    doctor,
)

LOG_LEVELS = ("debug", "info", "warning", "error")


def program(commands: Sequence[Callable[..., Any]] = COMMANDS) -> typer.Typer:
    """Make the program of these commands; a command is named as its function is."""
    made = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        help="Compile a LumosX checkpoint into an engine, run it, and prove it makes the same "
        "video.",
    )
    made.callback()(_program_options)
    for command in commands:
        made.command()(command)
        OPTIONS.update(_options(command))
    return made


def _options(command: Callable[..., Any]) -> Iterator[str]:
    """Yield the names of a command's options, as its function and as its users write them."""
    for name, hint in get_type_hints(command, include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            if isinstance(option, OptionInfo):
                yield name
                for word in (option.default, *(option.param_decls or ())):  # the first one's place
                    yield str(word).strip("-").replace("-", "_")


def _version(wanted: bool) -> None:
    if wanted:
        print(VERSION)
        raise typer.Exit


def _program_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    log_level: Annotated[
        str,
        typer.Option(
            help="What is logged to stderr, from: debug (shows where an error arose), info, "
            "warning, error."
        ),
    ] = "warning",
) -> None:
    if log_level not in LOG_LEVELS:
        raise typer.BadParameter(
            f"got '{log_level}', accepted are {', '.join(LOG_LEVELS)}", param_hint="--log-level"
        )
    show_log(log_level)


app = program()


def main() -> None:
    """Run the program `lumosx-rt`. What the terminal's encoding cannot say is shown escaped."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="lumosx-rt")

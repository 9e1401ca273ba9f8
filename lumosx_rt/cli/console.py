"""What the command line shows: results on stdout, progress and reasons on stderr."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.progress import Progress

INTERRUPTED = 130
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """A line of progress."""
    stderr.print(Text(line))


def result(text: str, values: Any, as_json: bool) -> None:
    """A result: text for people, or JSON for programs."""
    print(json.dumps(values, indent=2, ensure_ascii=False) if as_json else text, flush=True)


def refuse(reason: str, code: int = 1) -> NoReturn:
    stderr.print(Text.assemble(("error: ", "bold red"), reason))
    raise typer.Exit(code)


@contextmanager
def reasons(interrupted: str) -> Iterator[None]:
    """Turn refusals into one line and exit code 1, Ctrl-C into `interrupted` and 130."""
    try:
        yield
    except LumosXError as error:
        refuse(str(error))
    except KeyboardInterrupt:
        stderr.print(Text(f"\nstopped: {interrupted}"))
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(1) from None
    except OSError as error:
        refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


@contextmanager
def progress_bar(one: str | None = None) -> Iterator[Progress]:
    """Show bars with what is being done, steps and remaining time, while the block runs.

    one: the first text of a single bar for all parts; without it every part has its own.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bars(*columns, console=stderr) as bars:
        tasks = {} if one is None else {one: bars.add_task(one, total=None)}

        def show(
            part: str, done: int, total: int, metrics: Mapping[str, float] | None = None, /
        ) -> None:
            key = one or part
            if key not in tasks:
                tasks[key] = bars.add_task(part, total=total)
            values = "".join(f"  {name} {value:.3g}" for name, value in (metrics or {}).items())
            bars.update(tasks[key], description=part + values, completed=done, total=total)

        yield show

"""What the command line shows: results on stdout, progress and reasons on stderr."""

import json
import logging
import re
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

REFUSED, USAGE, INTERRUPTED = 1, 2, 130
_NO_MEMORY = re.compile(r"not enough memory|out of memory|can't allocate", re.IGNORECASE)
OPTIONS: set[str] = set()
"""The names of all options of all commands, like max_memory; the program fills it."""
log = logging.getLogger("lumosx_rt")
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """A line of progress."""
    stderr.print(Text(line))


def result(text: str, values: Any, as_json: bool) -> None:
    """A result: text for people, or JSON for programs."""
    print(json.dumps(values, indent=2) if as_json else text, flush=True)


def refuse(reason: str, code: int = REFUSED) -> NoReturn:
    """End the program with a reason."""
    stderr.print(Text.assemble(("error: ", "bold red"), reason))
    raise typer.Exit(code)


@contextmanager
def reasons(interrupted: str) -> Iterator[None]:
    """Turn whatever is raised into a reason and an exit code; no traceback is shown.

    1 for a refusal, 2 where it is the value of an option, 130 and `interrupted` for Ctrl-C.
    `--log-level debug` shows where it arose.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        stderr.print(Text(f"\nstopped: {interrupted}"))
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(REFUSED) from None
    except Exception as error:
        log.debug("raised here:", exc_info=True)
        code = USAGE if isinstance(error, LumosXError) and _is_of_an_option(error) else REFUSED
        refuse(reason_of(error), code)


def reason_of(error: Exception) -> str:
    """Say an error for people; one that nobody foresaw is said to be a bug."""
    if isinstance(error, LumosXError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _NO_MEMORY.search(said):
        return f"not enough memory{f' ({said:.200})' if said else ''}; ask for less"
    return (
        f"{type(error).__name__}: {said:.500}; this is a bug in lumosx-rt, please report it with "
        "what `lumosx-rt doctor --json` prints (--log-level debug shows where it arose)"
    )


def _is_of_an_option(error: LumosXError) -> bool:
    """Tell whether an error begins with the name of an option, so that its value is wrong."""
    subject, _, told = str(error).splitlines()[0].partition(": ")
    if subject == "video size":
        return True
    name = subject.partition(" (")[0].replace(" ", "_")
    return "got " in told and bool({name, name.removesuffix("s")} & OPTIONS)


class _Said(logging.Handler):
    """Writes records of the log as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {self.format(record)}")


_SAID = _Said()


def show_log(level: str) -> None:
    """Write what the package logs, from a level on, to stderr."""
    log.addHandler(_SAID)
    log.setLevel(level.upper())


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

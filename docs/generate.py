"""Write docs/cli.md and docs/api.md from the program itself.

python docs/generate.py            rewrite both
python docs/generate.py --check    exit with 1 if one of them differs
"""

import argparse
import re
import sys
import typing
from pathlib import Path
from typing import Any

import typer

import lumosx_rt

DOCS = Path(__file__).resolve().parent
KINDS = {int: " INTEGER", float: " NUMBER", Path: " PATH", str: " TEXT"}
API_INTRODUCTION = """\
# Python API

`import lumosx_rt as rt` gives exactly these names. They are imported when they are first used, so
the import itself is instant. This page is written by `python docs/generate.py`.
"""
CLI_INTRODUCTION = """\
# Command line

Results go to stdout (`--json` prints them for programs), progress and warnings to stderr. Exit
codes: 0 success, 1 a refusal or a failed check, 2 a usage error, 130 interrupted.
`lumosx-rt --version` prints the version. This page is written by `python docs/generate.py`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    code = 0
    for name, text in (("cli.md", cli_page()), ("api.md", api_page())):
        page = DOCS / name
        if page.is_file() and page.read_text("utf-8") == text:
            continue
        if check:
            print(f"docs/{name} differs: python docs/generate.py", file=sys.stderr)
            code = 1
        else:
            page.write_text(text, "utf-8")
            print(f"docs/{name} rewritten")
    return code


def program() -> Any:
    """The whole command line as a click group; its `commands` are by name."""
    from lumosx_rt.cli.main import app

    return typer.main.get_command(app)


def cli_page() -> str:
    """docs/cli.md: every command with its arguments and options."""
    group = program()
    parts = [CLI_INTRODUCTION]
    rows = [
        f"| [`{name}`](#{name}) | {_cell(_paragraphs(command)[0])} |"
        for name, command in group.commands.items()
    ]
    parts.append("\n".join(["| command | |", "|---|---|", *rows]) + "\n")
    for name, command in group.commands.items():
        parts.append(f"## {name} {{#{name}}}\n")
        parts.append("```\n" + _usage(name, command) + "\n```\n")
        parts.append("\n\n".join(_paragraphs(command)) + "\n")
        kinds = typing.get_type_hints(command.callback)
        table = [_row(p, kinds[p.name]) for p in command.params if p.name in kinds]
        parts.append("\n".join(["| | default | |", "|---|---|---|", *table]) + "\n")
    return "\n".join(parts)


def _paragraphs(command: Any) -> list[str]:
    text = (command.help or "").strip()
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]


def _usage(name: str, command: Any) -> str:
    arguments = [
        ("{}" if p.required else "[{}]").format(p.name.upper() + "..." * (p.nargs != 1))
        for p in command.params
        if p.param_type_name == "argument"
    ]
    return " ".join(["lumosx-rt", name, "[OPTIONS]", *arguments])


def _row(parameter: Any, kind: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    else:
        word = next((w for k, w in KINDS.items() if k in (kind, *_inner(kind))), "")
        names = ", ".join(f"`{option}{word}`" for option in parameter.opts)
    default = parameter.default
    shown = "" if default is None or default is False else f"`{default}`"
    return f"| {names} | {shown} | {_cell(parameter.help or '')} |"


def _inner(kind: Any) -> tuple[Any, ...]:
    """What a union or a list is of: `list[int] | None` is of int."""
    inner = typing.get_args(kind)
    return (*inner, *(deeper for part in inner for deeper in _inner(part)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def api_page() -> str:
    """docs/api.md: a directive for every public name."""
    parts = [API_INTRODUCTION]
    for name in lumosx_rt.__all__:
        value = getattr(lumosx_rt, name)
        # the generator of the page looks into lumosx_rt/ itself: its rooms have no __init__.py
        place = f"{value.__module__}.{value.__qualname__}".removeprefix("lumosx_rt.")
        parts.append(f"[](){{#{name}}}\n\n::: {place}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())

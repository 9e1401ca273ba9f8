"""Commands in pages, docstrings, help texts and messages are ones that the program accepts."""

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import lumosx_rt as rt
from lumosx_rt.cli.main import app

ROOT = Path(__file__).parents[2]
PACKAGE = ("reference", "kernels", "export", "calibration", "lumosx_rt")
SOURCES = (*PACKAGE, "benchmarks", "samples", "examples")
PROGRAMS = ("lumosx-rt", "python", "make", "pip", "apt", "pytest", "pre-commit")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
NEEDS = re.compile(
    r"checkpoints/lumosx|engines/lumosx|wan2\.1|two.phases|bench-gpu|nullgpu|^pip |^apt "
)
EXECUTED = (
    "lumosx-rt inspect samples/two-friends",
    "lumosx-rt inspect 21x30x52+1+4.4",
    "lumosx-rt inspect samples/two-friends --layout-png layout.png",
)


def pages() -> list[Path]:
    folders = ("", "kernels", "calibration", "checkpoints/tiny", "examples")
    texts = [page for folder in folders for page in (ROOT / folder).glob("*.md")]
    return sorted([*texts, *(ROOT / "docs").rglob("*.md")])


@cache
def commands() -> dict[str, str]:
    """Every command that is written anywhere -> where."""
    found: dict[str, str] = {}
    for page in pages():
        for command in in_markdown(page.read_text("utf-8")):
            found.setdefault(command, str(page.relative_to(ROOT)))
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for text in strings(file):
                for command in in_text(text):
                    found.setdefault(command, str(file.relative_to(ROOT)))
    return found


def in_markdown(text: str) -> Iterator[str]:
    for language, block in FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if language in ("sh", ""):
            yield from (known for line in lines if "[OPTIONS]" not in line for known in said(line))
    yield from in_text(FENCE.sub("", text))


def in_text(text: str) -> Iterator[str]:
    """Commands between backticks, and on indented lines of their own."""
    for span in SPAN.findall(text):
        yield from said(span)
    for line in text.splitlines():
        if line.startswith("    "):
            line = re.split(r"\s{3,}", line.strip())[0]
            if re.match(r"lumosx-rt |python (-m )?(\S+\.py|benchmarks\.)", line):
                yield from said(line)


def said(line: str) -> list[str]:
    line = " ".join(line.split(" #")[0].split())
    return [line] if line.split(" ")[0] in PROGRAMS and " " in line and "..." not in line else []


def strings(file: Path) -> Iterator[str]:
    """Every text of a source file; what is filled in when it runs becomes a word."""
    tree = ast.parse(file.read_text("utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
             for part in node.values}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "FILLED" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in parts:
                yield node.value


# -- the program's own parser -------------------------------------------------------------------

PROGRAM: Any = typer.main.get_command(app)


def problem(command: str) -> str | None:
    """What is wrong with a command; None if it would be taken."""
    words = shlex.split(command, comments=True)
    check = {"lumosx-rt": _program, "python": _script, "make": _target, "pip": _install}
    return check.get(words[0], lambda words: None)(words[1:])


def _program(words: list[str]) -> str | None:
    if "|" in words:
        names = {name for name in words if name != "|"}
        return (
            f"no commands {names - set(PROGRAM.commands)}"
            if names - set(PROGRAM.commands)
            else None
        )
    if words == ["--version"] or words == ["--help"]:
        return None
    if words[0] not in PROGRAM.commands:
        return f"no command '{words[0]}'"
    if words[1:] in ([], ["--help"]):
        return None  # spoken of by name
    try:
        PROGRAM.commands[words[0]].make_context(words[0], words[1:])
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        named = [word for word in words[1:] if not word.startswith("-")]
        missing = type(error).__name__ == "MissingParameter"
        return None if missing and not named else str(error.format_message())
    return None


def _script(words: list[str]) -> str | None:
    """Judge a file of this repository, or a module of it (`-m`); other programs are not ours."""
    if words[:1] == ["-m"] and words[1:] and (ROOT / words[1].split(".")[0]).is_dir():
        path = words[1].replace(".", "/")
        package = (ROOT / path).is_dir()
        words = [f"{path}/__main__.py" if package else f"{path}.py", *words[2:]]
    if not words or not words[0].endswith(".py"):
        return None
    script = ROOT / words[0]
    if not script.is_file():
        return f"no file {words[0]}"
    source = script.read_text("utf-8")
    options = [word.strip("[]") for word in words[1:]]
    unknown = [w for w in options if w.startswith("-") and f'"{w}"' not in source]
    return f"{words[0]} has no {', '.join(unknown)}" if unknown else None


def _target(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    # NAME=VALUE is asked for where the makefile reads it
    wanted = [f"$({word.split('=')[0]})" if "=" in word else f"\n{word}:" for word in words]
    missing = [word for word, found in zip(words, wanted, strict=True) if found not in makefile]
    return f"no target {', '.join(missing)}" if missing else None


def _install(words: list[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(re.findall(r"\[([\w,]+)\]", " ".join(words)))
    unknown = {e for some in extras for e in some.split(",")} - set(
        project["optional-dependencies"]
    )
    return f"no extra {', '.join(unknown)}" if unknown else None


# -- the tests ----------------------------------------------------------------------------------


def test_commands_are_found_in_every_kind_of_place() -> None:
    found = commands()
    assert len(found) > 60
    assert {"README.md", "docs/precision.md"} <= set(found.values())
    assert any(place.startswith("lumosx_rt/") for place in found.values())
    assert any(place.startswith("benchmarks/") for place in found.values())
    assert any(c.startswith("python -m benchmarks.") and ".py" in found[c] for c in found)
    assert set(EXECUTED) <= set(found)


@pytest.mark.parametrize("command", sorted(commands()))
def test_a_command_is_accepted(command: str) -> None:
    assert problem(command) is None, f"{commands()[command]}: `{command}`: {problem(command)}"


@pytest.mark.parametrize(
    "command",
    [
        "lumosx-rt biuld checkpoints/tiny",
        "lumosx-rt build checkpoints/tiny --presicion fp8",
        "lumosx-rt generate engines/tiny samples --steps many",
        "lumosx-rt generate engines/tiny",
        "lumosx-rt build | make",
        "python benchmarks/none.py",
        "python -m benchmarks.none",
        "python -m benchmarks.speed",
        "python -m benchmarks.tables --chekc",
        "make demos",
        "pip install lumosx-rt[gpus]",
    ],
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    assert problem(command) is not None


def test_what_is_not_run_is_listed_with_a_reason() -> None:
    rows = tomllib.loads((Path(__file__).parent / "not_run.toml").read_text("utf-8"))["commands"]
    assert all(len(row["reason"].split()) > 2 for row in rows)
    for row in rows:
        assert any(fnmatch(c, row["match"]) for c in commands()), f"{row['match']}: matches nothing"
    for command in filter(NEEDS.search, commands()):
        assert any(fnmatch(command, row["match"]) for row in rows), f"{command}: list it"


@pytest.mark.parametrize("command", EXECUTED)
def test_some_are_run(command: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "layout.png").is_file() == ("layout.png" in command)


def test_the_demo_is_what_the_quickstart_says() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ")
    demo = makefile.partition("\ndemo:")[2].partition("\n\n")[0]
    made = [line.strip().removeprefix("$(BIN)/") for line in demo.splitlines()[1:]]
    written = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    for line in made:
        command = " ".join(line.partition(" > ")[0].split())
        assert command in written, command


# -- messages -----------------------------------------------------------------------------------


def messages() -> list[str]:
    """What the page of errors quotes."""
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    return [quoted for cell in cells for quoted in re.findall(r'"([^"]+)"', cell)]


@cache
def said_by_the_code() -> str:
    texts = (text for folder in PACKAGE for file in (ROOT / folder).rglob("*.py")
             for text in strings(file))  # fmt: skip
    return " ".join(" ".join(texts).split())


@pytest.mark.parametrize("message", messages())
def test_a_message_of_the_errors_page_exists(message: str) -> None:
    parts = [part.strip() for part in re.split(r"\.\.\.|\b[A-Z]\b", message)]
    assert any(len(part) > 4 for part in parts)
    for part in filter(None, parts):
        assert part in said_by_the_code(), part


# -- Python -------------------------------------------------------------------------------------


def snippets() -> list[tuple[str, str]]:
    return [
        (f"{page.relative_to(ROOT)}:{i}", block)
        for page in pages()
        for i, (language, block) in enumerate(FENCE.findall(page.read_text("utf-8")))
        if language == "python"
    ]


@pytest.mark.parametrize(("place", "code"), snippets(), ids=lambda text: str(text)[:40])
def test_python_on_a_page_uses_names_that_exist(place: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rt":
            assert node.attr in rt.__all__, f"{place}: rt.{node.attr}"
        if isinstance(node, ast.Call) and (called := _called(node.func)) is not None:
            signature = inspect.signature(called)
            given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            signature.bind_partial(*[None] * len(node.args), **given)


def _called(function: ast.expr) -> Any:
    """What `rt.NAME(...)`, `rt.NAME.METHOD(...)` or `engine.METHOD(...)` calls."""
    parts = ast.unparse(function).split(".")
    if parts[0] == "engine":
        parts = ["rt", "Engine", *parts[1:]]
    if parts[0] != "rt" or len(parts) < 2:
        return None
    value: Any = rt
    for part in parts[1:]:
        value = getattr(value, part, None)
        if value is None:
            return None
    if len(parts) == 3 and parts[1] == "Engine":
        return value.__get__(object())  # as of an instance
    return value

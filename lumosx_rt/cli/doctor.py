"""`lumosx-rt doctor`, as a command."""

from lumosx_rt.cli.arguments import Json
from lumosx_rt.cli.console import reasons, refuse, result


def doctor(as_json: Json = False) -> None:
    """Print what this machine can do and what is missing. Exit code 1 if something is missing.

    Example: `lumosx-rt doctor --json`
    """
    with reasons("nothing was changed"):
        from lumosx_rt.runtime.describe import as_text
        from lumosx_rt.runtime.doctor import examine

        facts = examine()
        result(as_text(facts), facts, as_json)
        if facts["problems"]:
            refuse(f"{len(facts['problems'])} problems: run `make install` in the project's folder")

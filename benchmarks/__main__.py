"""Run a benchmark by its name, or list them all.

python -m benchmarks
python -m benchmarks speed.runtime ENGINE -o runtime.json
"""

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def programs() -> dict[str, str]:
    """Every program here and what it says it does, by name."""
    found = {}
    for file in sorted(HERE.rglob("*.py")):
        text = file.read_text("utf-8")
        if '__name__ == "__main__"' in text and file != Path(__file__):
            name = ".".join(file.relative_to(HERE).with_suffix("").parts)
            found[name] = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    return found


def main(words: list[str]) -> int:
    """Run the program that the first word names with the words behind it."""
    known = programs()
    if not words or words[0] not in known:
        width = max(map(len, known))
        print("\n".join(f"{name:<{width}}  {says}" for name, says in known.items()))
        if words:
            print(f"error: there is no benchmark '{words[0]}'", file=sys.stderr)
        return 2 if words else 0
    sys.argv = words
    runpy.run_module(f"benchmarks.{words[0]}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

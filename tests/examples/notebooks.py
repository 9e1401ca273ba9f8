"""Run a notebook without Jupyter: its code cells in order, in one namespace.

    python -m tests.examples.notebooks examples/notebooks/binding.ipynb

runs it on the paths it names and writes what its cells show into it.
"""

import ast
import base64
import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, in order."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def execute(cells: list[dict[str, Any]], **parameters: Any) -> list[list[dict[str, Any]]]:
    """Run cells; return what each shows, as outputs of the notebook format.

    parameters: replace the assignments of the cell that is tagged "parameters".
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for count, cell in enumerate(cells, 1):
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(ast.Module(body, []), f"cell {count}", "exec"), names)
            value = None
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(parameters) <= set(names), "a parameter that the notebook does not have"
            names |= parameters
        shown.append(_outputs(printed.getvalue(), value, count))
    return shown


def _outputs(printed: str, value: Any, count: int) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    if printed:
        lines = printed.splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
    if value is not None:
        data: dict[str, Any] = {"text/plain": [repr(value)]}
        if isinstance(value, Image.Image):
            file = io.BytesIO()
            value.save(file, "PNG", optimize=True)
            encoded = base64.b64encode(file.getvalue()).decode()
            data = {"image/png": encoded, "text/plain": ["<an image>"]}
        outputs.append(
            {
                "data": data,
                "execution_count": count,
                "metadata": {},
                "output_type": "execute_result",
            }
        )
    return outputs


def main(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    os.chdir(path.parent)
    for count, (cell, outputs) in enumerate(zip(cells, execute(cells), strict=True), 1):
        cell["outputs"], cell["execution_count"] = outputs, count
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    Path(path.name).write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

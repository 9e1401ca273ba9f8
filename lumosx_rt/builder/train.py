"""Training runs by name: the tiny LumosX from nothing, or a recipe of one's own."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.kinds import checked
from lumosx_rt.reference.numbers import whole_number
from lumosx_rt.reference.progress import Progress, Report, quiet

MOST_PROCESSES = 256


@checked
def train(
    recipe: str,
    folder: Path,
    *,
    device: str = "cpu",
    processes: int = 2,
    report: Report = lambda line: None,
    progress: Progress = quiet,
) -> Path:
    """Train what a name says, in a folder; return the finished bundle, folder/bundle.

    recipe: "tiny" for the drawn world's LumosX, encoders included, or FILE.py:FUNCTION, a function
    that returns a `Recipe`; what lies beside the file can be imported. A
    run that was killed goes on where it was. device: cpu or cuda. processes: workers that make
    latents. report: shown the plan before anything starts. Raises LumosXError for a name that says
    nothing, for what the file raises, for a folder with another run in it, for too little memory.
    """
    processes = whole_number(processes, "processes", 1, MOST_PROCESSES)
    check_device(device)
    if recipe == "tiny":
        from lumosx_rt.reference.world.train.course import TINY

        return TINY.run(folder, processes=processes, report=report, progress=progress)
    from lumosx_rt.reference.training.pipeline import make_bundle

    file, function = _split(recipe)
    options: Any = {"device": device, "processes": processes, "report": report}
    options |= {"progress": progress}
    with _beside(file):
        return make_bundle(_recipe_of(file, function), folder, folder / "latents", **options)


def check_device(device: str) -> None:
    """Raise LumosXError for a device that there is not, or not here."""
    import torch

    if device not in ("cpu", "cuda"):
        raise BadInput(f"device: got '{device}', accepted are cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device: got 'cuda', torch finds no GPU here; accepted is cpu")


def _split(recipe: str) -> tuple[Path, str]:
    """Return the file and the function of FILE.py:FUNCTION. Raises LumosXError."""
    file, _, function = recipe.rpartition(":")
    if not file:
        raise BadInput(f"recipe: got '{recipe}', accepted are tiny and FILE.py:FUNCTION")
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise BadInput(f"recipe: '{file}' is no Python file; give FILE.py:FUNCTION")
    return path.absolute(), function


@contextmanager
def _beside(file: Path) -> Iterator[None]:
    """Import from a file's folder while the block runs, and in workers that it starts.

    Errors of code in that folder become LumosXErrors with the line.
    """
    folder, known = str(file.parent), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename.startswith(f"{folder}/")]
        if isinstance(error, LumosXError) or not own and not isinstance(error, SyntaxError):
            raise
        line = own[-1].lineno if own else getattr(error, "lineno", None)
        where = f"{own[-1].filename if own else file}, line {line}"
        said = " ".join(str(error).split())
        raise BadInput(f"recipe: {where} raises {type(error).__name__}: {said:.500}") from error
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - known:  # another recipe may have others of these names
            if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{folder}/"):
                del sys.modules[name]


def _recipe_of(file: Path, function: str) -> Any:
    """Return the recipe that a function in a file returns. The file is the user's own and is run.

    It is imported by its name, so that worker processes find what it defines.
    """
    from lumosx_rt.reference.training.recipe import Recipe

    module = sys.modules.get(file.stem)
    if module is None:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    elif getattr(module, "__file__", None) != str(file):
        raise BadInput(f"recipe: '{file.name}' has the name of another module; rename it")
    made = getattr(module, function, None)
    if not callable(made):
        raise BadInput(f"recipe: '{file}' has no function '{function}'")
    try:
        inspect.signature(made).bind()
    except (TypeError, ValueError) as error:
        raise BadInput(f"recipe: '{function}' is called without anything: {error}") from None
    recipe = made()
    if not isinstance(recipe, Recipe):
        name = f"{file}:{function}"
        raise BadInput(f"recipe: {name} returns {type(recipe).__name__}, a Recipe is needed")
    return recipe

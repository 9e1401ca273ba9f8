"""Training runs by name: the tiny LumosX from nothing, or a recipe of one's own."""

import importlib.util
from pathlib import Path
from typing import Any

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.progress import Progress, Report, quiet


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
    that returns a `Recipe`. A run that was killed goes on where it was. processes: workers that
    make latents. report: shown the plan before anything starts. Raises LumosXError for a name that
    says nothing, a folder with another run in it, too little memory.
    """
    if recipe == "tiny":
        from lumosx_rt.reference.world.train.course import TINY

        return TINY.run(folder, processes=processes, report=report, progress=progress)
    from lumosx_rt.reference.training.pipeline import make_bundle

    options: Any = {"device": device, "processes": processes, "report": report}
    options |= {"progress": progress}
    return make_bundle(_recipe_of(recipe), folder, folder / "latents", **options)


def _recipe_of(name: str) -> Any:
    """Return the recipe that a function in a file returns. The file is the user's own and is
    run."""
    from lumosx_rt.reference.training.recipe import Recipe

    file, _, function = name.rpartition(":")
    if not file:
        raise LumosXError(f"recipe: got '{name}', accepted are tiny and FILE.py:FUNCTION")
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise LumosXError(f"recipe: '{file}' is no Python file; give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, function, None)
    if not callable(made):
        raise LumosXError(f"recipe: '{file}' has no function '{function}'")
    recipe = made()
    if not isinstance(recipe, Recipe):
        raise LumosXError(f"recipe: {name} returns {type(recipe).__name__}, a Recipe is needed")
    return recipe

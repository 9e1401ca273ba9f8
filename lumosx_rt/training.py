"""Training runs by name: the tiny LumosX from nothing, or a recipe of one's own."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lumosx_rt.reference.errors import LumosXError

Told = Callable[[str, int, int, dict[str, float]], None]
"""Progress: the part, steps done, steps in all, and what was measured."""


def train(
    recipe: str,
    folder: Path,
    *,
    device: str = "cpu",
    processes: int = 2,
    resume: bool = True,
    report: Callable[[str], None] = lambda line: None,
    told: Told = lambda part, done, steps, metrics: None,
) -> Path:
    """Trains what a name says, in a folder; returns the finished bundle, folder/bundle.

    recipe: "tiny" for the drawn world's LumosX, encoders included, or FILE.py:FUNCTION, a function
    that returns a `Recipe`. A run that was killed goes on where it was. processes: workers that
    make latents. report: told the plan before anything starts. Raises LumosXError for a name that
    says nothing, a folder with another run in it (or any, without `resume`), too little memory.
    """
    if not resume and folder.exists() and any(folder.iterdir()):
        raise LumosXError(f"{folder} is not empty; give a new folder, or go on with what is there")
    if recipe == "tiny":
        from lumosx_rt.reference.world.course import TINY

        report(f"the tiny LumosX from nothing in {folder}: {TINY.summary()}")
        return TINY.run(folder, told, processes)
    return _train_recipe(_recipe_of(recipe), folder, device, processes, report, told)


def _train_recipe(
    recipe: Any,
    folder: Path,
    device: str,
    processes: int,
    report: Callable[[str], None],
    told: Told,
) -> Path:
    from lumosx_rt.reference.checkpoint import save_bundle
    from lumosx_rt.reference.curve import draw_curve
    from lumosx_rt.reference.latent_cache import prepare_caches
    from lumosx_rt.reference.plan import plan
    from lumosx_rt.reference.train import METRICS_FILE, Progress
    from lumosx_rt.reference.train import train as run

    bundle = folder / "bundle"
    if bundle.exists():
        return bundle

    def cached(source: str, done: int, total: int) -> None:
        told(f"latents of {source}", done, total, {})

    def trained(p: Progress) -> None:
        told(p.stage, p.step + 1, p.steps, {"loss": p.loss_ema})

    caches = prepare_caches(recipe, folder / "cache", progress=cached, processes=processes)
    references = max(max(caches[name].buckets) for name in recipe.sources)
    report(str(plan(recipe, references, device)))
    model = run(recipe, folder, caches=caches, device=device, progress=trained)
    draw_curve(folder / METRICS_FILE, folder / "loss.png")
    save_bundle(bundle, transformer=model)
    return bundle


def _recipe_of(name: str) -> Any:
    """The recipe that a function in a file returns. The file is the user's own and is run."""
    from lumosx_rt.reference.recipe import Recipe

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

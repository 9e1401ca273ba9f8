"""A recipe from its data to a bundle: latents, the plan, training, the curve of its loss."""

from pathlib import Path

from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.progress import Progress, Report, quiet
from lumosx_rt.reference.training.budget import plan
from lumosx_rt.reference.training.curve import draw_curve
from lumosx_rt.reference.training.latents import prepare_caches
from lumosx_rt.reference.training.loop import METRICS_FILE, TrainingStep, train
from lumosx_rt.reference.training.recipe import Recipe


def make_bundle(
    recipe: Recipe,
    folder: Path,
    latents: Path,
    *,
    device: str = "cpu",
    processes: int = 1,
    report: Report = lambda line: None,
    progress: Progress = quiet,
) -> Path:
    """Train a recipe in `folder`; returns folder/bundle, the averaged transformer's weights.

    A finished bundle is found again, a killed run goes on. latents: folder of the latent caches.
    processes: workers that make them. report: shown what it will take, before training starts.
    Raises LumosXError as `train` and `build_cache` do.
    """
    bundle = folder / "bundle"
    if bundle.exists():
        return bundle

    def cached(source: str, done: int, total: int) -> None:
        progress(f"latents of {source}", done, total)

    def trained(now: TrainingStep) -> None:
        progress(now.stage, now.step + 1, now.steps, {"loss": now.loss_ema})

    caches = prepare_caches(recipe, latents, progress=cached, processes=processes)
    references = max(max(caches[name].buckets) for name in recipe.sources)
    report(str(plan(recipe, references, device)))
    model = train(recipe, folder, caches=caches, device=device, progress=trained)
    if recipe.steps > 1:
        draw_curve(folder / METRICS_FILE, folder / "loss.png")
    save_bundle(bundle, transformer=model)
    return bundle

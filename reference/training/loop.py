"""The training loop: flow matching on cached latents, killed and resumed without a trace.

    folder/state.safetensors   weights, averaged weights, optimizer; the recipe and the step in JSON
    folder/metrics.jsonl       a line for the first, every `log_every`th and the last step
    folder/cache/<source>/     latents, where none are given

Batches and noise are functions of (seed, step), so a resumed run equals an uninterrupted one bit
for bit at equal threads. Several processes (torchrun, accelerate launch) share a step's scenes.
"""

import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput, LumosXError, Unsupported, listing
from lumosx_rt.reference.files import look_at, open_regular, replacing, write_atomically
from lumosx_rt.reference.packages import require
from lumosx_rt.reference.places import held, place_of, try_folder
from lumosx_rt.reference.sampling.flow import training_loss
from lumosx_rt.reference.training.batches import Batch, batch_at
from lumosx_rt.reference.training.budget import plan
from lumosx_rt.reference.training.latents import LatentCache, prepare_caches
from lumosx_rt.reference.training.optimizer import Average, Optimizer, ema_decay, initialise
from lumosx_rt.reference.training.precision import trainable
from lumosx_rt.reference.training.recipe import Recipe

STATE_FILE = "state.safetensors"
METRICS_FILE = "metrics.jsonl"
METRICS_LIMIT_BYTES = 1 << 30
LOSS_MEMORY = 0.98  # of the smoothed loss
_SHARING = ("NO", "MULTI_GPU", "MULTI_CPU")  # of accelerate: processes that share scenes
MEASURED_STEPS = 3  # before a remaining time is told


class TrainingStep(NamedTuple):
    """A finished step of training. step: counted from 0; steps: of the whole run."""

    step: int
    steps: int
    stage: str
    loss: float
    loss_ema: float
    learning_rate: float
    grad_norm: float
    seconds: float
    tokens_per_second: float
    seconds_left: float | None
    """At the pace of this run so far; None until three steps are measured."""


def train(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    caches: Mapping[str, LatentCache] | None = None,
    device: str = "cpu",
    resume: bool = True,
    progress: Callable[[TrainingStep], None] = lambda done: None,
) -> LumosX:
    """Train a recipe in a folder, from its last checkpoint if there is one; the averaged model.

    caches: latents by the source's name; by default folder/cache, built where needed. progress is
    told every step in the main process, and may raise to stop. Raises LumosXError for a folder with
    another recipe's run (or any run, without `resume`), caches that do not fit the recipe, too
    little memory, and a loss that is not finite.
    """
    folder = place_of(folder)
    with _processes(device) as crew:
        with held(folder, "training") if crew.is_main else nullcontext():
            run = _trained(recipe, folder, caches, crew, resume, progress)
        return run.averaged()


def _trained(
    recipe: Recipe,
    folder: Path,
    caches: Mapping[str, LatentCache] | None,
    crew: "_Crew",
    resume: bool,
    progress: Callable[[TrainingStep], None],
) -> "_Run":
    """Train in a folder that is held, up to the recipe's last step."""
    if crew.is_main:
        try_folder(folder)
    if not resume and (folder / STATE_FILE).exists():
        raise BadInput(f"'{folder}' holds a run already; resume it, or give a new folder")
    if caches is None:
        with crew.main_first():
            caches = prepare_caches(recipe, folder / "cache")
    _must_fit(recipe, caches)
    references = max(max(caches[name].buckets) for name in recipe.sources)
    plan(recipe, references, crew.device, crew.count).must_fit()

    run = _Run(recipe, crew.device)
    if (folder / STATE_FILE).exists():
        run.load(folder / STATE_FILE)
    crew.wait()  # nobody may write before all have read
    model = crew.wrapped(run.model)
    metrics = _Metrics(folder / METRICS_FILE, run.step) if crew.is_main else None
    started, first = time.perf_counter(), run.step
    before = started
    with closing(_batches(recipe, caches, run.step, crew)) as batches:
        for step, batch in batches:
            loss = batch_loss(model, batch.to(crew.device)).mean()
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(run.model.parameters(), recipe.grad_clip))
            value = crew.mean(loss.detach())
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise BadInput(
                    f"training: at step {step} the loss is {value} and the gradient's norm "
                    f"{norm}; lower the learning rate or grad_clip, and go on from the last "
                    "checkpoint"
                )
            rate = recipe.learning_rate(step)
            run.change(rate, value)
            last = run.step == recipe.steps
            if crew.is_main and (last or run.step % recipe.save_every == 0):
                run.save(folder / STATE_FILE)
            if metrics is not None:
                now, done = time.perf_counter(), run.step - first
                left = (recipe.steps - run.step) * (now - started) / done
                finished = TrainingStep(
                    step,
                    recipe.steps,
                    recipe.stage_at(step).name,
                    value,
                    run.loss_ema,
                    rate,
                    norm,
                    now - before,
                    crew.count * batch.tokens / (now - before),
                    left if done >= MEASURED_STEPS else None,
                )
                before = now
                metrics.add(finished, last or step == 0 or run.step % recipe.log_every == 0)
                progress(finished)
    return run


def batch_loss(model: Callable[..., Tensor], batch: Batch) -> Tensor:
    """Flow-matching loss of every clip, float32 [streams, seeds] (docs/spec.md#training)."""
    streams, seeds = batch.noise.shape[:2]

    def velocity(latents: Tensor, times: Tensor) -> Tensor:
        told = (batch.text, batch.references, batch.template, batch.structure)
        return model(latents.unflatten(0, (streams, seeds)), times[::seeds], *told).flatten(0, 1)

    x0, times = (t.repeat_interleave(seeds, 0) for t in (batch.x0, batch.time))
    return training_loss(velocity, x0, batch.noise.flatten(0, 1), times).unflatten(0, (-1, seeds))


def _batches(
    recipe: Recipe, caches: Mapping[str, LatentCache], start: int, crew: "_Crew"
) -> Generator[tuple[int, Batch]]:
    """Yield the batches of all steps from `start`, each made while the one before is worked on."""

    def make(step: int) -> Batch:
        stage = recipe.stage_at(step)
        return batch_at(recipe, stage, caches[stage.data.name], step, (crew.rank, crew.count))

    with ThreadPoolExecutor(1, "batches") as thread:
        ahead = thread.submit(make, start) if start < recipe.steps else None
        for step in range(start, recipe.steps):
            assert ahead is not None
            batch = ahead.result()
            ahead = thread.submit(make, step + 1) if step + 1 < recipe.steps else None
            yield step, batch


def _must_fit(recipe: Recipe, caches: Mapping[str, LatentCache]) -> None:
    problems = [f"there is no cache of source '{n}'" for n in recipe.sources if n not in caches]
    for name, source in recipe.sources.items():
        try:
            if name in caches:
                caches[name].must_fit(recipe, source)
        except LumosXError as error:
            problems.append(str(error))
    if problems:
        raise BadInput(listing("training", problems))


# -- the state of a run ---------------------------------------------------------------------------


class _Run:
    """All that a step changes."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.step, self.loss_ema = recipe, 0, math.nan
        self.model = trainable(recipe, device)
        if recipe.start_from is None:
            initialise(self.model, recipe.seed)
        else:
            start = load_transformer(recipe.start_from, config=recipe.model)
            self.model.load_state_dict(start.state_dict())
        self.model.to(device)
        self.optimizer = Optimizer(self.model, recipe.optimizer, recipe.weight_decay)
        self.average = Average(self.model)

    def change(self, learning_rate: float, loss: float) -> None:
        """Take one step by the gradients at hand."""
        self.optimizer.step(learning_rate)
        self.average.update(ema_decay(self.step, self.recipe.ema_decay))
        first = math.isnan(self.loss_ema)
        self.loss_ema = loss if first else LOSS_MEMORY * self.loss_ema + (1 - LOSS_MEMORY) * loss
        self.step += 1

    def averaged(self) -> LumosX:
        """A model of its own with the averaged weights, for inference."""
        model = LumosX(self.recipe.model)
        model.load_state_dict(self.average.weights)
        return model.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        parts: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "ema": self.average.weights,
            "optimizer": self.optimizer.state(),
        }
        tensors = {
            f"{part}.{name}": tensor
            for part, state in parts.items()
            for name, tensor in state.items()
        }
        about = {"step": self.step, "loss_ema": self.loss_ema, "recipe": self.recipe.describe()}
        with replacing(path) as file:
            save_file(tensors, file, {"training": json.dumps(about)})

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Raise LumosXError for the state of another recipe, or a damaged one."""
        look_at(path, "training state", ("safetensors",))
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                about = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"'{path}' is no readable training state ({error})") from error
        mine: dict[str, Any] = json.loads(json.dumps(self.recipe.describe()))
        changed = [name for name, value in mine.items() if about["recipe"].get(name) != value]
        if changed:
            raise BadInput(
                f"'{path}' is of another recipe (its {', '.join(changed)} differ); give a new "
                "folder, or the same recipe"
            )
        state: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            state[part][rest] = tensor
        self.model.load_state_dict(state["model"])
        for name, tensor in self.average.weights.items():
            tensor.copy_(state["ema"][name])
        self.optimizer.load(state["optimizer"])
        self.step, self.loss_ema = about["step"], about["loss_ema"]


class _Metrics:
    """Lines of JSON, one for every `log_every` steps.

    On resume, lines after the last checkpoint are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = ""
        if os.path.lexists(path):
            with open_regular(path, METRICS_LIMIT_BYTES, "metrics", ("json",), empty=True) as file:
                text = file.read().decode("utf-8", "replace")
        kept = [line for line in text.splitlines() if _step_of(line) < step]
        write_atomically(path, "".join(f"{line}\n" for line in kept))
        self.path = path

    def add(self, finished: TrainingStep, due: bool) -> None:
        if due:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finished._asdict()) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line, from a machine that stopped


# -- several processes ----------------------------------------------------------------------------


class _Crew:
    """One process alone."""

    rank, count, is_main = 0, 1, True

    def __init__(self, device: str) -> None:
        self.device = device

    def wrapped(self, model: LumosX) -> Callable[..., Tensor]:
        return model

    def mean(self, value: Tensor) -> float:
        return float(value)

    def wait(self) -> None:
        pass

    @contextmanager
    def main_first(self) -> Iterator[None]:
        yield


class _AcceleratedCrew(_Crew):
    """Processes that share the scenes of a step; gradients are their mean."""

    def __init__(self, device: str) -> None:
        require("training on a GPU or by several processes", "accelerate")
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
        kind = str(self.accelerator.distributed_type).rpartition(".")[2]
        if kind not in _SHARING:
            raise Unsupported(
                f"training: accelerate is set to {kind}, which shards the model or is no torch "
                "device; every process holds it whole here (averages and optimizer are of whole "
                "tensors): launch with torchrun, or accelerate's MULTI_GPU"
            )
        super().__init__(str(self.accelerator.device))
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process

    def wrapped(self, model: LumosX) -> Callable[..., Tensor]:
        prepared: Callable[..., Tensor] = self.accelerator.prepare(model)
        return prepared

    def mean(self, value: Tensor) -> float:
        return float(self.accelerator.reduce(value, "mean"))

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        with self.accelerator.main_process_first():
            yield


@contextmanager
def _processes(device: str) -> Iterator[_Crew]:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several and not device.startswith("cuda"):
        yield _Crew(device)
        return
    crew = _AcceleratedCrew(device)
    try:
        yield crew
    finally:
        crew.accelerator.end_training()

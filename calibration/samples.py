"""Scenes to calibrate on, as the model meets them on its way from noise to video."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.encoders.umt5 import TextEncoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import BadInput, listing
from lumosx_rt.reference.files import read_json
from lumosx_rt.reference.sampling.denoise import denoise, guided_velocity
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import DEFAULT, Denoiser, Inputs
from lumosx_rt.reference.sampling.request import Request, ValidRequest
from lumosx_rt.reference.sampling.schedules import Schedule
from lumosx_rt.reference.scenes.folder import SCENE_FILE
from lumosx_rt.reference.scenes.prepared import prepare_scene
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT
from lumosx_rt.reference.world.scenes import scene_of
from lumosx_rt.reference.world.story import Story, story

LISTS = Path(__file__).parent / "scenes"
MOST_PEOPLE = 4  # that a story of the drawn world has


@dataclass(frozen=True)
class SceneSet:
    """Scenes by a name, with a hash of all that they say and show."""

    name: str
    sha256: str
    scenes: tuple[Scene, ...]
    seeds: tuple[int, ...]
    """Of each scene's noise."""


@dataclass(frozen=True)
class Sampling:
    """How scenes are sampled, and into how many timestep bins of equally many steps."""

    size: VideoSize
    steps: int
    shift: float
    guidance: float
    bins: int = 4

    def __post_init__(self) -> None:
        Schedule.released(self.steps, self.shift)
        if not 1 <= self.bins <= self.steps:
            raise BadInput(f"bins: needs 1 to {self.steps} (the steps), got {self.bins}")

    @property
    def schedule(self) -> Schedule:
        return Schedule.released(self.steps, self.shift)

    @property
    def binned_steps(self) -> list[list[int]]:
        """The steps of every bin, noisiest first."""
        return [part.tolist() for part in np.array_split(np.arange(self.steps), self.bins)]

    @property
    def binned_times(self) -> list[list[int]]:
        """The first and last time (0..1000) of every bin."""
        times = self.schedule.times.tolist()
        return [[times[part[0]], times[part[-1]]] for part in self.binned_steps]


class Moment(NamedTuple):
    """One call on the way: latents [1, channels, frames, rows, columns] at an integer time."""

    latents: Tensor
    time: int


def find_scenes(what: str, count: int | None = None) -> SceneSet:
    """Scenes by the name of a list, by its JSON file, or the prompt folders in a folder.

    count: only the first so many. Raises LumosXError for what is none of them, or drawn otherwise
    than the list says.
    """
    path = Path(what)
    named = LISTS / f"{what}.json"
    if what.replace("-", "").isalnum() and named.is_file():
        found = _listed(named)
    elif path.is_file() and path.suffix == ".json":
        found = _listed(path)
    elif path.is_dir():
        found = _folders(path)
    else:
        names = ", ".join(sorted(file.stem for file in LISTS.glob("*.json")))
        raise BadInput(
            f"scenes: got '{what}', accepted are {names}, a JSON list like these, or a folder of "
            "prompt folders"
        )
    if count is None:
        return found
    if not 1 <= count <= len(found.scenes):
        raise BadInput(f"count: got {count}, '{found.name}' has 1 to {len(found.scenes)} scenes")
    return SceneSet(found.name, found.sha256, found.scenes[:count], found.seeds[:count])


def request_of(
    scene: Scene, seed: int, sampling: Sampling, encoder: TextEncoder, vae: VideoAutoencoder
) -> Request:
    """Prepare and bind a scene to be observed. Raises LumosXError for what is wrong with it."""
    size = sampling.size
    prepared = prepare_scene(scene, size.height, size.width)
    valid = ValidRequest(
        prepared,
        size,
        DEFAULT.layout(prepared, size.grid),
        (seed,),
        sampling.steps,
        sampling.shift,
        sampling.guidance,
        NEGATIVE_PROMPT,
    )
    bind = valid.mechanism.bind
    return valid.bound(bind(prepared, valid.layout, size, encoder, vae, NEGATIVE_PROMPT))


def stratified(scenes: Sequence[Scene], count: int) -> list[int]:
    """Indices of so many scenes, as evenly over numbers of subjects as there are, in order."""
    strata: dict[int, list[int]] = {}
    for i, scene in enumerate(scenes):
        strata.setdefault(len(scene.subjects), []).append(i)
    ranked = sorted((rank, i) for part in strata.values() for rank, i in enumerate(part))
    return sorted(i for _, i in ranked[:count])


def velocity_of(model: LumosX, request: Request, guidance: float) -> Callable[[Moment], Tensor]:
    """Return the guided velocity that the sampler asks for, in the latents' shape."""
    asked = replace(request, guidance=guidance)
    velocity = guided_velocity(EagerBackend(model), [asked], model.config.head_dim)
    return lambda moment: velocity(moment.latents[None], moment.time)[0]


class _Recorder:
    """The reference as a backend, which keeps what every call was given."""

    def __init__(self, model: LumosX, before: Callable[[int], None]) -> None:
        self._backend, self._before = EagerBackend(model), before
        self.calls: list[Moment] = []

    def bind(self, inputs: Inputs) -> Denoiser:
        run = self._backend.bind(inputs)

        def denoise(latents: Tensor, time: int) -> Tensor:
            self._before(len(self.calls))
            self.calls.append(Moment(latents[0].clone(), time))
            return run(latents, time)

        return denoise

    def describe(self) -> dict[str, str]:
        return self._backend.describe()


def walk(
    model: LumosX, request: Request, before: Callable[[int], None] = lambda step: None
) -> Iterator[Moment]:
    """Sample a request; yield every call that was made. before: called with the step that comes."""
    recorder = _Recorder(model, before)
    for state in denoise(recorder, request, model.config.head_dim):
        if state.step:
            yield recorder.calls[-1]


def moments_of(model: LumosX, request: Request, sampling: Sampling) -> list[Moment]:
    """Return the call in the middle of every timestep bin."""
    calls = list(walk(model, request))
    return [calls[steps[len(steps) // 2]] for steps in sampling.binned_steps]


def _listed(file: Path) -> SceneSet:
    raw = read_json(file)
    entries, held_out = raw.get("scenes"), raw.get("held_out")
    if not isinstance(entries, list) or not entries or not isinstance(held_out, bool):
        raise BadInput(f"{file}: a list has `name`, `held_out`, `sha256` and some `scenes`")
    problems, stories = [], []
    for number, entry in enumerate(entries):
        told = _story(entry, held_out)
        if told is None:
            problems.append(f"scenes[{number}] needs a `seed` and 1 to {MOST_PEOPLE} `people`")
        elif told.caption != entry.get("caption"):
            problems.append(f"scenes[{number}] has another caption than its seed draws")
        else:
            stories.append(told)
    if problems:
        raise BadInput(listing(str(file), problems))
    digest = _digest(map(repr, stories))
    if digest != raw.get("sha256"):
        raise BadInput(f"{file}: this version draws its scenes otherwise than its sha256 says")
    scenes = tuple(map(scene_of, stories))
    return SceneSet(str(raw.get("name")), digest, scenes, tuple(told.seed for told in stories))


def _story(entry: Any, held_out: bool) -> Story | None:
    if not isinstance(entry, dict):
        return None
    seed, people = entry.get("seed"), entry.get("people")
    if type(seed) is not int or type(people) is not int or not 1 <= people <= MOST_PEOPLE:
        return None
    return story(seed, people, held_out)


def _folders(root: Path) -> SceneSet:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    folders = [
        path
        for path in folders
        if any((path / name).is_file() for name in ("caption.txt", SCENE_FILE))
    ]
    if not folders:
        raise BadInput(f"{root}: no prompt folders in it (a folder with a caption.txt)")
    scenes = tuple(Scene.load(path) for path in folders)
    said = (
        json.dumps([scene.caption, [r.word for r in scene.references]])
        + hashlib.sha256(scene.fitted(64, 64).tobytes()).hexdigest()
        for scene in scenes
    )
    return SceneSet(root.name, _digest(said), scenes, tuple(range(len(scenes))))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

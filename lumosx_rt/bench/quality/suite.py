"""Every scene of a list made, judged and kept; a run that was killed goes on where it was.

folder/
  run.json         what was run: another run is refused
  scenes.jsonl     a line for each scene, in the order of the list
  clips/NAME.png   its frames below each other
"""

import hashlib
import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lumosx_rt.bench.common.folder import append_line, claim, whole_lines
from lumosx_rt.bench.common.makers import MakeClip
from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.progress import Progress, quiet
from lumosx_rt.reference.world import draw, judge, looks, score, story
from lumosx_rt.reference.world.scene_lists import SceneList
from lumosx_rt.reference.world.story import Story

SCENES_FILE, CLIPS = "scenes.jsonl", "clips"


@dataclass(frozen=True)
class Result:
    """One scene, judged: a line of scenes.jsonl."""

    name: str
    seed: int
    people: int
    seconds: float
    """What making the clip took."""
    seen: dict[str, Any]
    """`judge.Seen` as a dictionary."""
    tally: score.Tally
    """Metric -> (hits, cases)."""


def world_sha256() -> str:
    """Hash the code that draws and judges: only runs of the same can be compared."""
    digest = hashlib.sha256()
    for module in (looks, story, draw, judge, score):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def identity_of(suite: str, scenes: SceneList, maker: dict[str, Any]) -> dict[str, Any]:
    """Return what a run is: runs with the same identity have the same results."""
    return {
        "suite": suite,
        "list": {"name": scenes.name, "sha256": scenes.sha256},
        "world": world_sha256(),
        "maker": maker,
    }


def run_suite(
    make_clip: MakeClip,
    stories: Sequence[Story],
    folder: Path,
    identity: dict[str, Any],
    progress: Progress = quiet,
) -> list[Result]:
    """Make and judge what `folder` does not hold yet; return a result for every story.

    identity: kept in run.json. Raises LumosXError for a folder with another run, or something else.
    """
    claim(folder, identity)
    known = {result.name: result for result in read_results(folder / SCENES_FILE)}
    missing = [told for told in stories if told.name not in known]
    done = len(stories) - len(missing)
    for told in missing:
        progress(told.name, done, len(stories))
        started = time.monotonic()
        frames = make_clip(told)
        seconds = round(time.monotonic() - started, 3)
        seen = judge.judge(frames, told)
        result = Result(
            told.name,
            told.seed,
            len(told.people),
            seconds,
            score.as_dict(seen),
            score.tally(seen),
        )
        line = json.dumps(asdict(result))
        _keep_clip(folder, told, frames)
        append_line(folder / SCENES_FILE, line)
        known[told.name] = _parsed(line)
        done += 1
    progress("done", done, len(stories))
    return [known[told.name] for told in stories]


def read_results(file: Path) -> list[Result]:
    """Return the results in a scenes.jsonl; none if there is no such file yet.

    A line that was torn by a kill is left out. Raises LumosXError for a file of something else.
    """
    if not file.is_file():
        return []
    results = []
    for number, line in enumerate(whole_lines(file), 1):
        try:
            results.append(_parsed(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{file}: line {number} is no result of a benchmark ({error}); give the "
                f"{SCENES_FILE} of a run of this version"
            ) from None
    return results


def _parsed(line: str) -> Result:
    found = Result(**json.loads(line))
    tally = {name: (hits, cases) for name, (hits, cases) in found.tally.items()}
    if tally.keys() != set(score.METRICS):
        raise ValueError("other metrics than this version's")
    return replace(found, tally=tally)


def read_clip(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return the frames made for a scene: uint8 [frames, height, width, 3]."""
    with Image.open(folder / CLIPS / f"{name}.png") as strip:
        return np.asarray(strip.convert("RGB")).reshape(-1, draw.HEIGHT, draw.WIDTH, 3)


def _keep_clip(folder: Path, told: Story, frames: NDArray[np.uint8]) -> None:
    strip = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    with replacing(folder / CLIPS / f"{told.name}.png") as temporary:
        strip.save(temporary, format="PNG")

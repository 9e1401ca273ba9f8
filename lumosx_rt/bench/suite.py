"""Every scene of a list made, judged and kept; a run that was killed goes on where it was.

folder/
  run.json         what was run: another run is refused
  scenes.jsonl     a line for each scene, in the order of the list
  clips/NAME.png   its frames below each other
"""

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lumosx_rt.bench.models import MakeClip
from lumosx_rt.files import replacing, write_atomically
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.world import draw, judge, looks, score, story
from lumosx_rt.reference.world.scene_lists import SceneList
from lumosx_rt.reference.world.story import Story

RUN_FILE, SCENES_FILE, CLIPS = "run.json", "scenes.jsonl", "clips"
Progress = Callable[[str, int, int], None]
"""Told (scene, scenes done, scenes in all)."""


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
    """Of the code that draws and judges: only runs of the same can be compared."""
    digest = hashlib.sha256()
    for module in (looks, story, draw, judge, score):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def identity_of(suite: str, scenes: SceneList, maker: dict[str, Any]) -> dict[str, Any]:
    """What a run is: runs with the same identity have the same results."""
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
    progress: Progress = lambda name, done, of: None,
) -> list[Result]:
    """Makes and judges what `folder` does not hold yet; returns a result for every story.

    identity: kept in run.json. Raises LumosXError for a folder with another run, or something else.
    """
    _claim(folder, identity)
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
        _append(folder / SCENES_FILE, line)
        known[told.name] = _parsed(line)
        done += 1
    progress("done", done, len(stories))
    return [known[told.name] for told in stories]


def read_results(file: Path) -> list[Result]:
    """The results in a scenes.jsonl; none if there is no such file yet.

    A line that was torn by a kill is left out. Raises LumosXError for a file of something else.
    """
    if not file.is_file():
        return []
    results = []
    for number, line in enumerate(_whole_lines(file), 1):
        try:
            results.append(_parsed(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise LumosXError(
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
    """The frames made for a scene: uint8 [frames, height, width, 3]."""
    with Image.open(folder / CLIPS / f"{name}.png") as strip:
        return np.asarray(strip.convert("RGB")).reshape(-1, draw.HEIGHT, draw.WIDTH, 3)


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Makes the folder this run's own."""
    file = folder / RUN_FILE
    wanted = json.loads(json.dumps(identity))
    if not file.is_file():
        if folder.exists() and not (folder.is_dir() and _is_empty(folder)):
            raise LumosXError(f"{folder} exists and holds no benchmark; choose another with -o")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        return
    found = read_identity(file)
    if found != wanted:
        parts = sorted(_differing(found, wanted))
        raise LumosXError(
            f"{folder} holds another run, with another {', '.join(parts)}; choose another folder "
            "with -o, or remove it"
        )


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a killed run left over."""
    return all(path.name.startswith(".") for path in folder.iterdir())


def read_identity(file: Path) -> dict[str, Any]:
    """run.json. Raises LumosXError if it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert isinstance(found, dict)
    except (OSError, ValueError, AssertionError):
        raise LumosXError(f"{file}: not the {RUN_FILE} of a benchmark") from None
    return found


def _differing(a: Any, b: Any, name: str = "") -> set[str]:
    """The entries, named by their path, in which two trees of dictionaries differ."""
    if a == b:
        return set()
    if isinstance(a, dict) and isinstance(b, dict):
        return {
            found
            for key in a.keys() | b.keys()
            for found in _differing(a.get(key), b.get(key), f"{name}.{key}" if name else key)
        }
    return {name}


def _keep_clip(folder: Path, told: Story, frames: NDArray[np.uint8]) -> None:
    strip = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    with replacing(folder / CLIPS / f"{told.name}.png") as temporary:
        strip.save(temporary, format="PNG")


def _whole_lines(file: Path) -> list[str]:
    """Lines that end; what follows the last one was torn."""
    whole = file.read_bytes().rpartition(b"\n")[0]
    return whole.decode("utf-8", "replace").split("\n") if whole else []


def _append(file: Path, line: str) -> None:
    """Adds a line, in place of one that was torn."""
    with file.open("ab+") as stream:
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(f"{line}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())

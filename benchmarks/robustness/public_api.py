"""Public Python functions with arguments of every wrong kind: a refusal by name, or the answer.

    python -m benchmarks.robustness.public_api -o benchmarks/results/public_api.json

Every parameter of every function is given every value of a list, the others being sound. What is
refused has to be an `rt.LumosXError` with a message and a code; anything else is wrong. Requests of
an engine are checked, not made. Exit status 1 where one is wrong.
"""

import argparse
import inspect
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import lumosx_rt as rt
from benchmarks.records import keep
from lumosx_rt.builder.options import BuildOptions
from lumosx_rt.reference.scenes.builtin import builtin_scenes

NOWHERE = Path("/nowhere/at/all")
HOSTILE: list[Any] = [
    None, True, 0, -1, 3, 10**30, 1.5, math.nan, math.inf, -1e300, 1j, "", " ", "x", "a b", "12",
    "\0", "x" * 5000, "\udcff", b"x", bytearray(b"x"), [], [1], ["x"], [None], (), (1, 2, 3), {},
    {"a": 1}, {1}, range(3), object(), object, len, lambda: None, iter([]), Path("x"), NOWHERE,
    np.zeros(3), np.array(3), np.int64(2), np.float32(0.5), np.zeros((2, 2, 3), np.uint8),
    np.array(["x"]), torch.zeros(2), torch.tensor(2), Image.new("RGB", (4, 4)), rt.VideoSize,
    rt.Reference("man", np.zeros((4, 4), np.uint8)), rt.Subject(()), rt.Scene("x", "a man"),
    rt.VideoSize(1, 8, 8), rt.LumosXError("x"), Exception,
]  # fmt: skip
_VIDEO = rt.Video("x", np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8), 8, 0)
SOUND: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Reference": (rt.Reference, {"word": "man", "image": "x.png"}),
    "Subject": (rt.Subject, {"references": ()}),
    "Scene": (rt.Scene, {"name": "x", "caption": "a man"}),
    "Scene.load": (rt.Scene.load, {"path": NOWHERE}),
    "Scene.from_folder": (rt.Scene.from_folder, {"path": NOWHERE}),
    "Scene.from_toml": (rt.Scene.from_toml, {"path": NOWHERE}),
    "Scene.from_prompt": (rt.Scene.from_prompt, {"prompt": "a man"}),
    "VideoSize": (rt.VideoSize, {}),
    "Lossy": (rt.Lossy, {}),
    "SceneLayout.from_key": (rt.SceneLayout.from_key, {"key": "1x2x3+0+-"}),
    "load": (rt.load, {"path": NOWHERE}),
    "build": (rt.build, {"checkpoint": NOWHERE, "out": NOWHERE}),
    "calibrate": (rt.calibrate, {"path": NOWHERE, "out": NOWHERE}),
    "train": (rt.train, {"recipe": "nowhere.py:make", "folder": NOWHERE}),
    "benchmark": (rt.benchmark, {"path": NOWHERE, "folder": NOWHERE}),
    "Stage": (rt.Stage, {"name": "x", "steps": 1, "data": None}),
    "Recipe": (rt.Recipe, {"model": None, "size": None, "stages": ()}),
    "Video.save": (_VIDEO.save, {"path": NOWHERE / "x.mp4"}),
}
"""What is called, and arguments that are of the right kinds."""
SETTINGS = ("size", "steps", "guidance", "shift", "seeds", "negative_prompt", "schedule")
Call = tuple[str, Callable[..., Any], dict[str, Any]]


def calls(name: str) -> Iterator[Call]:
    """Yield calls of a function of `SOUND`, each with one hostile argument."""
    call, sound = SOUND[name]
    parameters = inspect.signature(call).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if call is rt.build:
        names += sorted(BuildOptions.__optional_keys__)
        yield name, call, sound | {"warp": 1}
    for parameter in names:
        for value in HOSTILE:
            # a function that takes progress is called, and what it raises is the caller's
            if not (parameter in ("report", "progress") and callable(value)):
                yield name, call, sound | {parameter: value}


def engine_calls(engine: rt.Engine) -> Iterator[Call]:
    """Yield calls of `Engine.check` and `verify`, each with one hostile argument."""
    scene = next(scene for scene in builtin_scenes() if scene.name == "one-subject")
    sound = {"scene": scene, "size": rt.VideoSize(1, 16, 16), "steps": 1}
    for value in HOSTILE:
        for name in ("scene", *SETTINGS, f"not {value!s:.9}"):
            yield "Engine.check", engine.check, sound | {name: value}
        for name in ("engine", "checkpoint", "size", "steps", "seeds", "progress"):
            given = {"engine": engine, "scenes": [], "steps": 1} | {name: value}
            yield "verify", rt.verify, given


def answer(call: Callable[..., Any], given: dict[str, Any]) -> tuple[str, str | None]:
    """Call it: ("answered", None), (the refusal's code, None), or ("wrong", why)."""
    try:
        call(**given)
    except rt.LumosXError as error:
        return error.code, None if str(error).strip() else "an empty message"
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    return "answered", None


def run(engine: rt.Engine) -> dict[str, Any]:
    """Make all calls, in a folder of their own, and count how they end."""
    ends: Counter[str] = Counter()
    wrong = []
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for made in (*(calls(name) for name in SOUND), engine_calls(engine)):
                for name, call, given in made:
                    end, why = answer(call, given)
                    ends[end] += 1
                    if why:
                        wrong.append({"call": name, "given": ascii(given)[:300], "why": why[:300]})
        finally:
            os.chdir(here)
    return {"calls": ends.total(), "ends": dict(sorted(ends.items())), "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--engine", type=Path, default=Path("engines/tiny"))
    given = parser.parse_args()
    record = run(rt.load(given.engine, unverified=True))
    keep(record, given.out)
    return 1 if record["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Every public name with arguments of every wrong kind: a refusal by name, never a raw error."""

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lumosx_rt as rt
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
SCENE = next(scene for scene in builtin_scenes() if scene.name == "one-subject")
FRAMES = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)


def answers(call, **given: Any) -> None:
    """Call it; it may work or refuse in one way, and in no other."""
    try:
        call(**given)
    except rt.LumosXError as error:
        assert str(error).strip() and error.code
    except Exception as error:
        shown = ", ".join(f"{name}={value!r:.80}" for name, value in given.items())
        pytest.fail(f"{call}({shown}): {type(error).__name__}: {error}")


BASES: dict[str, tuple[Any, dict[str, Any]]] = {
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
    "Video.save": (rt.Video("x", FRAMES, 8, 0).save, {"path": NOWHERE / "x.mp4"}),
}


@pytest.mark.parametrize("name", BASES)
def test_wrong_kinds_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, base = BASES[name]
    parameters = inspect.signature(call).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    names += sorted(options) if (options := _options(call)) else []
    assert names
    for parameter in names:
        for value in HOSTILE:
            if parameter in ("report", "progress") and callable(value):
                continue  # it is called, and what it raises is the caller's
            answers(call, **base | {parameter: value})
    answers(call, **base, **({"warp": 1} if options else {}))


def _options(call) -> set[str]:
    from lumosx_rt.builder.options import BuildOptions

    return set(BuildOptions.__optional_keys__) if call is rt.build else set()


def test_wrong_kinds_given_to_an_engine(micro_engine, monkeypatch):
    """Whatever is refused is refused before texts and pictures are encoded."""
    size = rt.VideoSize(1, 16, 16)
    parameters = ("size", "steps", "guidance", "shift", "seeds", "negative_prompt", "schedule")
    for parameter in parameters:
        for value in HOSTILE:
            answers(micro_engine.check, scene=SCENE, **{"size": size, "steps": 1, parameter: value})
    for value in HOSTILE:
        answers(micro_engine.check, scene=value, size=size)
        answers(micro_engine.check, scene=SCENE, **{f"not {value!s:.9}": value})
    answers(rt.verify, engine=micro_engine, scenes=[])
    for parameter in ("scenes", "checkpoint", "size", "steps", "seeds", "progress"):
        for value in HOSTILE:
            given = {"scenes": [], "size": size, "steps": 1} | {parameter: value}
            if parameter != "scenes" or not isinstance(value, list):
                answers(rt.verify, engine=micro_engine, **given)
    for value in (None, 3, "engine"):
        answers(rt.verify, engine=value, scenes=[SCENE])

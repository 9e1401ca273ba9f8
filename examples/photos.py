"""Make videos from your own photos: check a scene, generate one video per seed, save them.

    python examples/photos.py engines/tiny examples/scenes/pirate-and-knight -o out/photos

A scene is a folder with caption.txt or scene.toml and pictures (docs/scenes.md).
"""

import argparse
from pathlib import Path

import lumosx_rt as rt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("engine", type=Path)
parser.add_argument("scene", type=Path)
parser.add_argument("--steps", type=int, help="solver steps, by default the engine's")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
parser.add_argument("-o", "--out", type=Path, default=Path("out"))
given = parser.parse_args()

scene = rt.Scene.load(given.scene)
errors, warnings = scene.problems()  # of words and pictures, all at once
for problem in (*errors, *warnings):
    print(problem)
if errors:
    raise SystemExit(1)

given.out.mkdir(parents=True, exist_ok=True)
engine = rt.load(given.engine)
for video in engine.generate(scene, seeds=given.seeds, steps=given.steps):
    print(video.save(given.out / f"{video.name}-seed{video.seed}.mp4"))

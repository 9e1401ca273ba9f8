"""Stream a video with previews: after every step, the first frame as it would be now.

    python examples/previews.py engines/tiny examples/scenes/pirate-and-knight -o out/previews

Leaving the loop cancels the rest. A preview costs the decoding of one frame.
"""

import argparse
from pathlib import Path

from PIL import Image

import lumosx_rt as rt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("engine", type=Path)
parser.add_argument("scene", type=Path)
parser.add_argument("--steps", type=int, help="solver steps, by default the engine's")
parser.add_argument("-o", "--out", type=Path, default=Path("out"))
given = parser.parse_args()

given.out.mkdir(parents=True, exist_ok=True)
engine = rt.load(given.engine)
for event in engine.stream(given.scene, steps=given.steps):
    if event.preview is not None:
        file = given.out / f"step-{event.step:03}.png"
        Image.fromarray(event.preview[0]).save(file)
        print(f"step {event.step} of {event.steps}, noise level {event.sigma:.2f}: {file}")
    for video in event.videos or []:  # the last event has them
        print(video.save(given.out / f"{video.name}.mp4"))

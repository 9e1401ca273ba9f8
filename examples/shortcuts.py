"""Take lossy shortcuts: how much sooner a video is there, and how far it is from the exact one.

    python examples/shortcuts.py engines/tiny examples/scenes/pirate-and-knight

For engines of the backend onnxruntime. No certificate covers such a video (docs/shortcuts.md).
"""

import argparse
import time
from pathlib import Path

import numpy as np

import lumosx_rt as rt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("engine", type=Path)
parser.add_argument("scene", type=Path)
parser.add_argument("--steps", type=int, help="solver steps, by default the engine's")
given = parser.parse_args()

exact = None
for name, lossy in {
    "exact": rt.Lossy(),
    "references' keys at every 2 steps": rt.Lossy(keys_every=2),
    "and blocks skipped below a change of 0.1": rt.Lossy(keys_every=2, skip_below=0.1),
}.items():
    engine = rt.load(given.engine, lossy=lossy)
    started = time.perf_counter()
    frames = engine.generate(given.scene, steps=given.steps)[0].frames.astype(float)
    seconds = time.perf_counter() - started
    exact = frames if exact is None else exact
    print(f"{name}: {seconds:.2f} s, mean change {np.abs(frames - exact).mean():.2f} of 255")

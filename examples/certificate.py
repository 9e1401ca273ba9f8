"""Verify an engine against the PyTorch reference, then read its certificate from report.json.

    python examples/certificate.py engines/tiny samples/drawn/two

The certificate belongs to this content of the engine; after another build there is none.
"""

import argparse
import json
from pathlib import Path

import lumosx_rt as rt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("engine", type=Path)
parser.add_argument("scenes", type=Path, nargs="+")
parser.add_argument("--steps", type=int, default=8, help="solver steps")
given = parser.parse_args()

engine = rt.load(given.engine, unverified=True)
rt.verify(engine, [rt.Scene.load(scene) for scene in given.scenes], steps=given.steps)

certificate = json.loads((given.engine / "report.json").read_text())["verify"]
for scene in certificate["scenes"]:
    error = scene["final_relative_error"]  # None if they were not finite
    print(f"{scene['scene']}: final latents differ by {error}, allowed is {scene['gate']}")
for quirk in certificate["quirks"]:
    print(f"  {'would show' if quirk['told_apart'] else 'hidden'}: {quirk['quirk']}")
print("passed" if certificate["passed"] else "failed")
raise SystemExit(0 if certificate["passed"] else 1)

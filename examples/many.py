"""Serve many requests on one engine: equal shapes share a batch, a bad request ends alone.

    python examples/many.py engines/tiny samples/drawn/one samples/drawn/two -o out/many

Encoding, denoising and decoding of different requests overlap (docs/serving.md).
"""

import argparse
from concurrent.futures import as_completed
from pathlib import Path

import lumosx_rt as rt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("engine", type=Path)
parser.add_argument("scenes", type=Path, nargs="+")
parser.add_argument("--steps", type=int, help="solver steps, by default the engine's")
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
parser.add_argument("-o", "--out", type=Path, default=Path("out"))
given = parser.parse_args()

given.out.mkdir(parents=True, exist_ok=True)
engine = rt.load(given.engine)
asked = [(scene, seed) for scene in given.scenes for seed in given.seeds]
with engine.serve(together=4, waiting=16) as service:
    submit = service.submit
    jobs = {submit(scene, seeds=[seed], steps=given.steps): scene for scene, seed in asked}
    for job in as_completed(jobs):
        try:
            (video,) = job.result()
            print(video.save(given.out / f"{video.name}-seed{video.seed}.mp4"))
        except rt.LumosXError as error:
            print(f"{jobs[job]}: {error}")
print(engine.health.as_dict())

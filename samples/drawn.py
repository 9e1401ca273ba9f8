"""Draws samples/drawn: scenes of the world that checkpoints/tiny was trained in, with their clips.

    python samples/drawn.py [folder]

Their faces and looks are held out: neither training nor the benchmark's list has them.
"""

import sys
from pathlib import Path

from lumosx_rt.reference.world.scenes import write_story
from lumosx_rt.reference.world.story import story

SCENES = {"one": (300, 1), "two": (301, 2), "three": (302, 3)}


def main(folder: Path) -> None:
    for name, (seed, people) in SCENES.items():
        write_story(story(seed, people, held_out=True), folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "drawn")

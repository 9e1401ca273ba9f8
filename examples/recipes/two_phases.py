"""A training recipe of one's own: the paper's two phases, on folders of prompt folders.

    lumosx-rt train examples/recipes/two_phases.py:two_phases -o out/two-phases

Each prompt folder holds, beside its pictures and caption, the clip to learn, `video.mp4`.
"""

from pathlib import Path

from lumosx_rt.reference.backbones.config import PRESETS
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.training.recipe import Recipe, Stage
from lumosx_rt.reference.training.sources import FolderSource

SIZE = VideoSize(frames=81, height=480, width=832)


def two_phases() -> Recipe:
    """From Wan2.1's weights, single subjects first, then everything."""
    single = FolderSource("data/single", SIZE)
    mixed = FolderSource("data/mixed", SIZE)
    return Recipe(
        model=PRESETS["1.3b"],
        size=SIZE,
        components=Path("checkpoints/wan2.1"),
        start_from=Path("checkpoints/wan2.1"),
        stages=(
            Stage(name="single subject", steps=2000, data=single, streams=8, seeds=1,
                  learning_rate=1e-5, augmented=0.9),
            Stage(name="mixed", steps=6000, data=mixed, streams=8, seeds=1,
                  learning_rate=1e-5, augmented=0.9),
        ),
        variants=4,
        optimizer="adamw",
        ema_decay=0.9999,
        bf16=True,
        checkpointing=True,
    )  # fmt: skip

"""Clips to write and read."""

import numpy as np


def moving(frames: int, height: int, width: int) -> np.ndarray:
    """A smooth picture that drifts, so that x264 keeps it well."""
    time, y, x = np.ogrid[:frames, :height, :width]
    waves = [
        np.sin((x + 3 * time) / 17),
        np.cos((y - 2 * time) / 13),
        np.sin((x + y) / 23 + time / 9),
    ]
    planes = np.stack([np.broadcast_to(wave, (frames, height, width)) for wave in waves], -1)
    return np.uint8(127.5 + 100 * planes)

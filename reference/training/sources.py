"""Training data from prompt folders: scenes with the clips they describe."""

import hashlib
import os
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lumosx_rt.reference.errors import BadInput, LumosXError, listing
from lumosx_rt.reference.files import of_the_system, sha256_of
from lumosx_rt.reference.scenes.clips import read_clip
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.training.recipe import Source

__all__ = ["FolderSource", "Source"]

CLIP_FILE = "video.mp4"


class FolderSource:
    """Prompt folders (docs/spec.md#prompt-folders), each with the clip it describes as `video.mp4`.

    The first `size.frames` frames of a clip count, scaled to cover `size` and cropped about their
    centre. Every picture and clip is decoded once here. Raises one LumosXError for everything
    that is wrong with any of them.
    """

    def __init__(self, path: str | os.PathLike[str], size: VideoSize) -> None:
        self.path, self.size = Path(path).absolute(), size
        self.name = self.path.resolve().name
        if not self.path.is_dir():
            raise BadInput(f"data: '{path}' is no folder; give one of prompt folders")
        folders = sorted(p for p in self.path.iterdir() if p.is_dir() and not of_the_system(p.name))
        problems: list[str] = []
        self.scenes: list[tuple[Scene, Path]] = []
        for folder in folders:
            try:
                scene = Scene.load(folder)
                scene.check()
                frames = len(read_clip(folder / CLIP_FILE)[0])
                if frames < size.frames:
                    raise BadInput(f"{CLIP_FILE} has {frames} frames, {size.frames} are needed")
                self.scenes.append((scene, folder / CLIP_FILE))
            except LumosXError as error:
                problems.append(f"{folder.name}: {error}")
        if not folders:
            problems.append(f"there is no prompt folder with a {CLIP_FILE} in it; put some there")
        if problems:
            raise BadInput(listing(f"data '{self.path}'", problems))

    def __len__(self) -> int:
        return len(self.scenes)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and contents of all files but the system's, and the size."""
        found = hashlib.sha256(repr(self.size).encode())
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            name = file.relative_to(self.path)
            if not any(map(of_the_system, name.parts)):
                found.update(f"{name.as_posix()}\0{sha256_of(file)}\n".encode())
        return found.hexdigest()

    def item(self, i: int) -> tuple[Scene, NDArray[np.uint8]]:
        scene, clip = self.scenes[i]
        frames = read_clip(clip)[0][: self.size.frames]
        return scene, np.stack([_cover(f, self.size.height, self.size.width) for f in frames])


def _cover(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return the frame scaled to cover height x width, and its middle: uint8 [height, width, 3]."""
    if frame.shape[:2] == (height, width):
        return frame
    scale = max(height / frame.shape[0], width / frame.shape[1])
    rows, columns = (
        max(least, round(side * scale))
        for side, least in zip(frame.shape[:2], (height, width), strict=True)
    )
    image = Image.fromarray(frame).resize((columns, rows), Image.Resampling.BICUBIC)
    x, y = (columns - width) // 2, (rows - height) // 2
    return np.asarray(image.crop((x, y, x + width, y + height)))

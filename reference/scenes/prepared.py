"""A scene, prepared once: texts checked and cleaned, pictures decoded and fitted."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumosx_rt.reference.errors import BadInput, listing
from lumosx_rt.reference.scenes.images import fit_image
from lumosx_rt.reference.scenes.scene import Scene


@dataclass(frozen=True, eq=False)
class PreparedScene:
    """A sound scene with everything that is read of it; nothing is opened or cleaned again."""

    name: str
    caption: str
    """Cleaned."""
    words: tuple[str, ...]
    """The word of each picture, cleaned."""
    lone: int
    """Pictures that stand alone: background and objects."""
    subject_sizes: tuple[int, ...]
    """Pictures of each subject."""
    pictures: NDArray[np.uint8]
    """uint8 [references, height, width, 3], as the model is shown them
    (docs/spec.md#picture-preparation)."""
    warnings: tuple[str, ...] = ()


def prepare_scene(
    scene: Scene,
    height: int,
    width: int,
    *,
    max_references: int | None = None,
    max_members: int | None = None,
) -> PreparedScene:
    """Check a scene and decode each of its pictures once, for frames of height x width pixels.

    max_references: pictures in all; max_members: pictures of one subject. Raises one LumosXError
    for everything that is wrong with the scene. One decoded picture is held at a time.
    """
    errors, warnings = scene.said_problems(max_references, max_members)
    pictures = np.zeros((len(scene.references), height, width, 3), np.uint8)
    if max_references is None or len(pictures) <= max_references:
        for i, picture in scene.opened():
            if isinstance(picture, str):
                errors.append(picture)
            else:
                pictures[i] = fit_image(picture, height, width, scene.alpha)
    if errors:
        raise BadInput(listing(f"scene '{scene.name}'", errors))
    return PreparedScene(
        name=scene.name,
        caption=scene.clean_caption,
        words=scene.clean_words,
        lone=scene.lone,
        subject_sizes=scene.subject_sizes,
        pictures=pictures,
        warnings=tuple(warnings),
    )

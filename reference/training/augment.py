"""Augmented reference pictures, as the release trains on them (docs/spec.md#augmentation).

    numeric     brightness, contrast, saturation; a slight blur              every picture
    geometric   crop of 0.67-1 of the area, shrink, mirror, rotation, shift  subjects and objects

What comes out is the fitted frame itself, white around the picture. Same seed, same picture.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.scenes.images import fit_image, picture_of
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject

MIN_CROP_AREA = 0.67
MIN_LONGEST_PX = 112  # the smallest longest side after shrinking
FLIP_PROBABILITY = AFFINE_PROBABILITY = 0.9
MAX_ANGLE_DEG = 20.0
MAX_SHIFT = 0.05  # of the frame's sides
COLOUR_JITTER = 0.2
MAX_BLUR_PX = 0.7

_BICUBIC = Image.Resampling.BICUBIC


def augment(
    image: Image.Image,
    seed: int | Sequence[int],
    *,
    height: int,
    width: int,
    geometric: bool = True,
    strength: float = 1.0,
) -> Image.Image:
    """Another look at a reference picture, in its frame: RGB, width x height pixels.

    strength: 0 (only fitted, as `fit_image` does) to 1 (as released); it scales ranges and
    probabilities alike. Raises LumosXError for other strengths.
    """
    if not 0 <= strength <= 1:
        raise BadInput(f"augmentation: strength must be from 0 to 1, got {strength}")
    rng = np.random.default_rng(seed)
    numeric, shape, chance = rng.random(4), rng.random(7), rng.random(2) / max(strength, 1e-9)
    picture = Image.fromarray(fit_image(image, image.height, image.width))
    if geometric:
        picture = _cropped(picture, 1 - strength * (1 - MIN_CROP_AREA) * shape[0], shape[1:3])
    scale = min(width / picture.width, height / picture.height)
    if geometric:
        least = MIN_LONGEST_PX / (scale * max(picture.size))
        scale *= 1 - strength * max(0.0, 1 - least) * shape[3]
    fitted = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    picture = picture.resize(fitted, _BICUBIC)
    if geometric and chance[0] < FLIP_PROBABILITY:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = _recoloured(picture, numeric, strength)
    frame = Image.new("RGB", (width, height), "white")
    frame.paste(picture, ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    if geometric and chance[1] < AFFINE_PROBABILITY:
        frame = _moved(frame, strength * (2 * shape[4:] - 1))
    return frame


def augment_scene(
    scene: Scene, seed: int | Sequence[int], *, height: int, width: int, strength: float = 1.0
) -> Scene:
    """Return the scene with every picture augmented; a background keeps its geometry.

    height and width of the frame in pixels. Raises LumosXError for a picture that cannot be read.
    """
    seeds = iter(np.random.SeedSequence(seed).generate_state(len(scene.references)).tolist())

    def other(reference: Reference, geometric: bool = True) -> Reference:
        picture = picture_of(reference.image, exif=scene.exif)
        if scene.alpha == "drop":
            picture = Image.fromarray(fit_image(picture, picture.height, picture.width, "drop"))
        seen = augment(
            picture, next(seeds), height=height, width=width, geometric=geometric, strength=strength
        )
        return Reference(reference.word, seen)

    background = scene.background and other(scene.background, geometric=False)
    objects = tuple(other(reference) for reference in scene.objects)
    subjects = tuple(
        Subject(tuple(other(reference) for reference in subject.references), subject.face)
        for subject in scene.subjects
    )
    return replace(scene, background=background, objects=objects, subjects=subjects)


def _cropped(picture: Image.Image, area: float, place: NDArray[np.float64]) -> Image.Image:
    """A piece of the picture's own proportions, `place` of the way to the right and down."""
    kept = [max(1, round(side * area**0.5)) for side in picture.size]
    x, y = (round((a - b) * p) for a, b, p in zip(picture.size, kept, place, strict=True))
    return picture.crop((x, y, x + kept[0], y + kept[1]))


def _recoloured(picture: Image.Image, draw: NDArray[np.float64], strength: float) -> Image.Image:
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind, u in zip(kinds, draw[:3].tolist(), strict=True):
        picture = kind(picture).enhance(1 + strength * COLOUR_JITTER * (2 * u - 1))
    return picture.filter(ImageFilter.GaussianBlur(strength * MAX_BLUR_PX * float(draw[3])))


def _moved(frame: Image.Image, by: NDArray[np.float64]) -> Image.Image:
    """Rotated about its centre and shifted; by: angle, right and down, each -1 to 1."""
    angle, right, down = by.tolist()
    return frame.rotate(
        angle * MAX_ANGLE_DEG,
        _BICUBIC,
        translate=(round(right * MAX_SHIFT * frame.width), round(down * MAX_SHIFT * frame.height)),
        fillcolor="white",
    )

"""Augmented pictures: what they keep, what they change, and how often."""

import numpy as np
import pytest
from PIL import Image

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.images import fit_image
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.reference.training.augment import augment, augment_scene

HEIGHT, WIDTH = 120, 200


def picture(height: int = 90, width: int = 70) -> Image.Image:
    """Left half red, right half blue, a green bar below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (200, 40, 40)
    pixels[:, width // 2 :] = (40, 40, 200)
    pixels[height * 3 // 4 :] = (40, 160, 40)
    return Image.fromarray(pixels)


def seen(seed: int, image: Image.Image | None = None, **options) -> np.ndarray:
    made = augment(image or picture(), seed, height=HEIGHT, width=WIDTH, **options)
    assert made.mode == "RGB" and made.size == (WIDTH, HEIGHT)
    return np.asarray(made).astype(int)


def colour(image: np.ndarray) -> np.ndarray:
    """Pixels of the picture: not (nearly) grey or white."""
    return image.max(-1) - image.min(-1) > 60


def centre(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())


@pytest.mark.parametrize("size", [(90, 70), (47, 131), (300, 200), (5, 5)])
@pytest.mark.parametrize("geometric", [True, False])
def test_no_strength_is_only_fitting(size: tuple[int, int], geometric: bool) -> None:
    image = picture(*size)
    fitted = fit_image(image, HEIGHT, WIDTH)
    assert (seen(3, image, strength=0.0, geometric=geometric) == fitted).all()


def test_transparent_pixels_are_paper() -> None:
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert (seen(1, image, strength=0.0) == 255).all()


def test_the_seed_decides() -> None:
    assert (seen(4) == seen(4)).all()
    assert len({seen(seed).tobytes() for seed in range(20)}) == 20


def test_a_background_keeps_its_place() -> None:
    """Its picture covers the pixels it covers when fitted, and is brightened or dimmed there."""
    plain = fit_image(picture(), HEIGHT, WIDTH).astype(int)
    inside = (plain != 255).any(-1)
    factors = []
    for seed in range(30):
        image = seen(seed, geometric=False)
        assert (image[~inside] == 255).all()
        assert abs(np.subtract(centre(colour(image)), centre(colour(plain)))).max() < 1.5
        factors.append(image[inside].mean() / plain[inside].mean())
    assert min(factors) < 0.93 and max(factors) > 1.07 and 0.75 < min(factors) < max(factors) < 1.25


def angle(image: np.ndarray) -> tuple[float, bool]:
    """Degrees by which up is turned, and whether red is right of blue: seen from the bar."""
    red = (image[..., 0] > 110) & (image[..., 2] < 110) & (image[..., 1] < 110)
    blue = (image[..., 2] > 110) & (image[..., 0] < 110) & (image[..., 1] < 110)
    (row_r, column_r), (row_b, column_b) = centre(red), centre(blue)
    mirrored = column_r > column_b
    down, right = (
        (row_r - row_b, column_r - column_b) if mirrored else (row_b - row_r, column_b - column_r)
    )
    return float(np.degrees(np.arctan2(down, right))), mirrored


def test_geometry_as_released() -> None:
    """Mirrored nine times in ten, turned by at most 20 degrees nine times in ten."""
    found = [angle(seen(seed)) for seed in range(160)]
    mirrored = np.mean([flip for _, flip in found])
    assert 0.80 < mirrored < 0.98  # 0.9 +- 4 standard errors
    angles = np.array([turn for turn, _ in found])
    assert 17 < np.abs(angles).max() < 22
    assert 0.03 < np.mean(np.abs(angles) < 0.4) < 0.25  # one in ten, and the smallest others
    assert abs(angles.mean()) < 3 and angles.min() < -15 and angles.max() > 15


def test_pictures_are_shrunk_down_to_the_released_size() -> None:
    heights = []
    for seed in range(80):
        made = augment(picture(224, 168), seed, height=224, width=416)
        mask = colour(np.asarray(made).astype(int))
        heights.append(mask.any(1).sum())
    assert 100 < min(heights) < 130 and max(heights) > 200  # 112, less what blur takes


def test_crops_keep_at_least_the_released_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a ramp of 200 levels, from how many columns a crop still shows."""
    for name in ("AFFINE_PROBABILITY", "COLOUR_JITTER", "MAX_BLUR_PX"):
        monkeypatch.setattr(f"lumosx_rt.reference.training.augment.{name}", 0.0)
    ramp = np.arange(200, dtype=np.uint8).repeat(200).reshape(200, 200).T
    image = Image.fromarray(ramp).convert("RGB")
    areas, starts = [], []
    for seed in range(150):
        made = np.asarray(augment(image, seed, height=200, width=200)).astype(int)
        levels = made[made < 230]
        areas.append(((levels.max() - levels.min() + 1) / 200) ** 2)
        starts.append(levels.min())
    assert 0.66 < min(areas) < 0.70 and 0.97 < max(areas) <= 1
    assert 0.78 < np.mean(areas) < 0.89  # uniform in area: 0.835
    assert min(starts) == 0 and max(starts) > 15


def test_half_the_strength_is_half_as_much() -> None:
    angles = [angle(seen(seed, strength=0.5)) for seed in range(80)]
    assert 8 < max(abs(turn) for turn, _ in angles) < 11.5
    assert 0.3 < np.mean([flip for _, flip in angles]) < 0.6


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_other_strengths_are_refused(strength: float) -> None:
    with pytest.raises(LumosXError, match="strength must be from 0 to 1"):
        seen(0, strength=strength)


def scene() -> Scene:
    people = (Subject((Reference("man", picture()), Reference("hat", picture())), 0),)
    return Scene(
        "s", "A man, a hat, a box, the sea.", Reference("sea", picture()),
        (Reference("box", picture()),), people,
    )  # fmt: skip


def test_a_scene_keeps_everything_but_its_pictures() -> None:
    made = augment_scene(scene(), (3, 1), height=HEIGHT, width=WIDTH)
    assert (made.caption, made.lone, made.subject_sizes) == (scene().caption, 2, (2,))
    assert [r.word for r in made.references] == ["sea", "box", "man", "hat"]
    assert made.subjects[0].face == 0
    frames = made.fitted(HEIGHT, WIDTH)
    assert len({frame.tobytes() for frame in frames}) == 4, "equal pictures, each with its own look"
    for frame, reference in zip(frames, made.references, strict=True):
        assert (frame == np.asarray(reference.image)).all(), "they are the fitted frames themselves"
    plain = fit_image(picture(), HEIGHT, WIDTH).astype(int)
    assert (frames[0][(plain == 255).all(-1)] == 255).all(), "the background stays where it was"
    again = augment_scene(scene(), (3, 1), height=HEIGHT, width=WIDTH).fitted(HEIGHT, WIDTH)
    other = augment_scene(scene(), (3, 2), height=HEIGHT, width=WIDTH).fitted(HEIGHT, WIDTH)
    assert (frames == again).all() and (frames != other).any()

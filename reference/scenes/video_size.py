"""The size of a video in pixels, and of its latents."""

from collections.abc import Iterator
from dataclasses import dataclass

from lumosx_rt.reference.errors import BadInput, LumosXError, listing
from lumosx_rt.reference.numbers import whole_number

TIME_FACTOR, SPACE_FACTOR = 4, 8  # pixels per latent of the Wan2.1 VAE
MOST_FRAMES, MOST_SIDE = 1 + 4 * 4096, 1 << 15  # far beyond what any model is for
MOST_PIXELS = 4096 * 4096  # of a frame; every reference picture is fitted to one


@dataclass(frozen=True)
class VideoSize:
    """Size of a video in pixels; frames are 1 + 4k, height and width multiples of 8.

    Integers of any kind are taken. Raises LumosXError for other sizes, with the nearest that is
    one.
    """

    frames: int = 81
    height: int = 480
    width: int = 832

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise BadInput(listing("video size", problems))

    def _problems(self) -> Iterator[str]:
        """Make the three plain integers, and say which cannot be."""
        for name, first, step, most in (
            ("frames", 1, TIME_FACTOR, MOST_FRAMES),
            ("height", SPACE_FACTOR, SPACE_FACTOR, MOST_SIDE),
            ("width", SPACE_FACTOR, SPACE_FACTOR, MOST_SIDE),
        ):
            try:
                value = whole_number(getattr(self, name), name, first, most)
            except LumosXError as error:
                yield str(error)
                continue
            object.__setattr__(self, name, value)
            past = (value - first) % step
            if past:
                rule = "1 + 4k" if name == "frames" else f"a multiple of {step}"
                near = [n for n in (value - past, value - past + step) if n <= most]
                said = " or ".join(map(str, near))
                yield f"{name} must be {rule}, got {value}; the nearest is {said}"
        sides = (self.height, self.width)
        if all(isinstance(side, int) for side in sides) and self.height * self.width > MOST_PIXELS:
            yield (
                f"height x width must be at most {MOST_PIXELS:,} pixels, got "
                f"{self.height} x {self.width}"
            )

    @property
    def latent(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        frames = (self.frames - 1) // TIME_FACTOR + 1
        return frames, self.height // SPACE_FACTOR, self.width // SPACE_FACTOR

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, token rows and token columns: the sizes of a layout."""
        frames, rows, columns = self.latent
        return frames, -(-rows // 2), -(-columns // 2)

"""The size of a video in pixels, and of its latents."""

from dataclasses import dataclass

from lumosx_rt.reference.errors import LumosXError, listing

TIME_FACTOR, SPACE_FACTOR = 4, 8  # pixels per latent of the Wan2.1 VAE


@dataclass(frozen=True)
class VideoSize:
    """Size of a video in pixels; frames are 1 + 4k, height and width multiples of 8."""

    frames: int = 81
    height: int = 480
    width: int = 832

    def __post_init__(self) -> None:
        problems = []
        if self.frames < 1 or self.frames % TIME_FACTOR != 1:
            near = max(self.frames - 1, 0) // TIME_FACTOR * TIME_FACTOR + 1
            problems.append(
                f"frames must be 1 + 4k, got {self.frames}; the nearest below is {near}"
            )
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < SPACE_FACTOR or value % SPACE_FACTOR:
                problems.append(f"{name} must be a multiple of {SPACE_FACTOR}, got {value}")
        if problems:
            raise LumosXError(listing("video size", problems))

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

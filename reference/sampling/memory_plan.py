"""What a request needs of memory and how it fits a limit: decided once, carried along."""

from dataclasses import dataclass

GIB = 2**30
Tile = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Peak of each phase in bytes, all that is held included."""

    held_bytes: int
    text_bytes: int
    pictures_bytes: int
    denoise_bytes: int
    decode_bytes: int
    limit_bytes: int | None = None

    @property
    def phases(self) -> dict[str, int]:
        return {
            "text": self.text_bytes,
            "pictures": self.pictures_bytes,
            "denoise": self.denoise_bytes,
            "decode": self.decode_bytes,
        }

    @property
    def peak_bytes(self) -> int:
        return max(self.phases.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit, if there is one."""
        return self.limit_bytes is None or self.peak_bytes <= self.limit_bytes

    def __str__(self) -> str:
        peaks = ", ".join(f"{name} {value / GIB:.2f}" for name, value in self.phases.items())
        limit = "" if self.limit_bytes is None else f" of {self.limit_bytes / GIB:.2f}"
        return f"peak {self.peak_bytes / GIB:.2f}{limit} GiB ({peaks})"


@dataclass(frozen=True, kw_only=True)
class MemoryPlan(Peaks):
    """Peaks of this computer's memory, those of a GPU's, and what was done to get there."""

    device: Peaks | None = None
    """Of the GPU's own memory, where an engine runs on one."""
    sequential: bool = False
    """The guidance branches run one after the other."""
    tile: Tile | None = None
    """Latent (rows, columns) that are decoded at a time; None: whole frames."""
    frees_text_encoder: bool = False
    """It is let go after use, and loaded again for new words."""

    @property
    def fits(self) -> bool:
        """Whether both peaks are within their limits."""
        return super().fits and (self.device is None or self.device.fits)

    def __str__(self) -> str:
        done = [
            text
            for said, text in (
                (self.frees_text_encoder, "text encoder freed after use"),
                (self.sequential, "guidance branches one after the other"),
                (self.tile, "decoded in tiles of {}x{} latents".format(*(self.tile or (0, 0)))),
            )
            if said
        ]
        device = [] if self.device is None else [f"on the GPU {self.device}"]
        return "; ".join([super().__str__(), *device, *done])

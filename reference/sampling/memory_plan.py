"""What a request needs of memory and how it fits a limit: decided once, carried along."""

from dataclasses import dataclass

GIB = 2**30
Tile = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Peak of each phase in bytes, all that is held included, and what was done to get there."""

    held_bytes: int
    text_bytes: int
    pictures_bytes: int
    denoise_bytes: int
    decode_bytes: int
    limit_bytes: int | None = None
    sequential: bool = False
    """The guidance branches run one after the other."""
    tile: Tile | None = None
    """Latent (rows, columns) that are decoded at a time; None: whole frames."""
    frees_text_encoder: bool = False
    """It is let go after use, and loaded again for new words."""

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

    def __str__(self) -> str:
        peaks = ", ".join(f"{name} {value / GIB:.2f}" for name, value in self.phases.items())
        limit = "" if self.limit_bytes is None else f" of {self.limit_bytes / GIB:.2f}"
        done = [
            text
            for said, text in (
                (self.frees_text_encoder, "text encoder freed after use"),
                (self.sequential, "guidance branches one after the other"),
                (self.tile, "decoded in tiles of {}x{} latents".format(*(self.tile or (0, 0)))),
            )
            if said
        ]
        return "; ".join([f"peak {self.peak_bytes / GIB:.2f}{limit} GiB ({peaks})", *done])

"""What is measured: the model's sizes and the scenes, in full or small enough to rehearse."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.reference.backbones.config import PRESETS, LumosXConfig
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout


@dataclass(frozen=True)
class Scale:
    """Sizes of everything the suite does."""

    config: LumosXConfig
    scenes: Mapping[int, str]
    """Number of references -> key of the `SceneLayout`."""
    streams: tuple[tuple[str, ...], ...]
    """Scenes of one call, in different groups: what correctness is about."""
    samples: int
    """Rows of an output that are computed in float64."""
    best: int
    """Tile sizes of a kernel that a sweep tries in other ways, too."""
    device: torch.device
    rehearsal: bool

    def keys(self, *references: int) -> list[str]:
        """The scenes with these numbers of references, as far as there are any."""
        return [self.scenes[n] for n in references if n in self.scenes]

    def noise(self, seed: int = 0) -> Callable[..., Tensor]:
        """`torch.randn` on the device, repeatable."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return partial(torch.randn, generator=generator, device=self.device)

    def sample(self, rows: int) -> Tensor:
        """Which of so many rows are computed in float64: sorted, the ends among them."""
        generator = torch.Generator().manual_seed(rows)
        chosen = torch.randperm(rows, generator=generator)[: self.samples]
        ends = torch.arange(rows)[:: max(1, rows - 1)]
        return torch.cat([chosen, ends]).unique().to(self.device)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`torch.compile`; a rehearsal traces only, a compiler for CPUs has nothing to say here."""
        backend = "eager" if self.rehearsal else "inductor"
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False, backend=backend)
        return compiled


def layouts_of(keys: tuple[str, ...]) -> list[SceneLayout]:
    return [SceneLayout.from_key(key) for key in keys]


def full() -> Scale:
    """Wan2.1-1.3B at 81 frames of 480x832."""
    return Scale(
        config=PRESETS["1.3b"],
        scenes={
            0: "21x30x52+0+-",
            1: "21x30x52+1+-",
            4: "21x30x52+0+4",
            8: "21x30x52+2+3.3",
            16: "21x30x52+4+4.4.4",
        },
        streams=(
            ("21x30x52+0+-", "21x30x52+0+-"),
            ("21x30x52+0+4", "21x30x52+2+2"),
            ("21x30x52+4+4.4.4", "21x30x52+1+5.6.4"),
        ),
        samples=256,
        best=2,
        device=torch.device("cuda"),
        rehearsal=False,
    )


def rehearsal() -> Scale:
    """Everything the full scale has, as small as it goes: two heads of 32, a few tokens a frame."""
    return Scale(
        config=LumosXConfig(
            dim=64, ffn_dim=128, num_heads=2, num_layers=2, freq_dim=16, text_dim=32, text_len=6
        ),
        scenes={0: "1x1x9+0+-", 4: "1x1x3+0+2"},
        streams=(("1x1x9+0+2", "1x1x9+1+1"),),  # as wide as two tiles of the bias
        samples=12,
        best=1,
        device=torch.device("cpu"),
        rehearsal=True,
    )

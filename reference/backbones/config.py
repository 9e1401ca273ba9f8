"""The sizes and switches of a LumosX transformer, and the presets people mean by name."""

from dataclasses import dataclass, fields
from typing import Any

from lumosx_rt.reference.errors import BadInput

PATCH = (1, 2, 2)  # latent frames, rows and columns per token


@dataclass(frozen=True, kw_only=True)
class LumosXConfig:
    """Sizes and switches of the transformer (docs/spec.md#sizes). Structure lives in
    `SceneLayout`."""

    dim: int = 1536
    """Width of the residual stream."""
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    freq_dim: int = 256
    """Width of the time sinusoid."""
    text_dim: int = 4096
    """Width of the text encoder's output."""
    text_len: int = 512
    """Text positions; shorter prompts are zero-padded, and the padding is attended."""
    in_dim: int = 16
    out_dim: int = 16
    mcam_ratio: float = 0.5
    """Strength of the cross-attention bias (MCAM); 0 switches it off."""
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        problems = []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type is bool or f.type is int:
                wrong = type(value) is not f.type or (f.type is int and value < 1)
            else:
                wrong = type(value) not in (int, float) or not 0 <= value < float("inf")
            if wrong:
                kind = getattr(f.type, "__name__", f.type)
                problems.append(f"{f.name} must be a positive {kind}, got {value!r}")
        if problems:
            raise BadInput("config: " + "; ".join(problems).replace("positive bool", "bool"))
        if self.dim % self.num_heads or self.head_dim % 2:
            raise BadInput(
                f"config: dim {self.dim} over {self.num_heads} heads is not an even head size"
            )
        if self.freq_dim % 2:
            raise BadInput(f"config: freq_dim must be even, got {self.freq_dim}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LumosXConfig":
        """Take what it knows of a config file's entries and ignores the rest."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})


PRESETS = {
    "1.3b": LumosXConfig(),
    "14b": LumosXConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    "tiny": LumosXConfig(
        dim=192, ffn_dim=768, num_heads=6, num_layers=5, text_dim=64, text_len=256
    ),
}

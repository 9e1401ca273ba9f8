"""Useful work, counted from a layout, and the least time that it takes.

The ceilings were measured on an H200 in plain torch with random data: a large bfloat16 matrix
product, and a device copy (bytes read plus written; 4.8 TB/s by the datasheet). e4m3 is taken as
twice bfloat16, as its matrix units are. An H100 has the same matrix units and slower memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.mechanisms.mechanism import Layout

CEILING_TFLOPS = {"half": 790.0, "e4m3": 1580.0}
CEILING_TBPS = 4.3


@dataclass(frozen=True)
class Work:
    """What has to be done, however it is done."""

    flops: Mapping[str, float] = field(default_factory=dict)
    """Operations of matrix products (a multiply-add is two), by the type of their operands."""
    bytes: float = 0.0
    """Each input read once, each output written once."""

    @property
    def roof_ms(self) -> float:
        """The time at the ceilings."""
        products = sum(count / CEILING_TFLOPS[kind] for kind, count in self.flops.items())
        return max(products, self.bytes / CEILING_TBPS) * 1e-9

    def rates(self, ms: float) -> dict[str, float]:
        """TFLOP/s or TB/s of a run that took so long, and its share of the roofline."""
        flops = sum(self.flops.values())
        name, amount = ("tflops", flops) if flops else ("tbps", self.bytes)
        return {name: amount / ms * 1e-9, "roofline_share": self.roof_ms / ms}


def self_attention(layout: Layout, config: LumosXConfig, kind: str = "half") -> Work:
    """Count two products over every pair of a query and a key it sees."""
    return Work({kind: 4.0 * config.dim * layout.attended_pairs})


def cross_attention(layout: Layout, config: LumosXConfig) -> Work:
    """Return the same over the text; the bias table is a thousandth of it and left out."""
    return Work({"half": 4.0 * config.dim * layout.tokens * config.text_len})


def linear(tokens: int, inputs: int, outputs: int, kind: str = "half") -> Work:
    return Work({kind: 2.0 * tokens * inputs * outputs})


def forward(
    layout: Layout, config: LumosXConfig, attention: str = "half", linears: str = "half"
) -> Work:
    """A model's blocks: attentions, and linear layers on tokens.

    Of the last block, references need keys and values only. Text, head and patches are left out
    (less than a thousandth).
    """
    dim, blocks = config.dim, config.num_layers
    video, references = layout.video_tokens, layout.tokens - layout.video_tokens
    weights = 6 * dim * dim + 2 * dim * config.ffn_dim
    rows = blocks * video + (blocks - 1) * references
    products = 2.0 * (rows * weights + references * 2 * dim * dim)
    pairs = (blocks - 1) * layout.attended_pairs + video * layout.tokens
    flops = {"half": 4.0 * dim * rows * config.text_len}
    for kind, count in ((attention, 4.0 * dim * pairs), (linears, products)):
        flops[kind] = flops.get(kind, 0.0) + count
    return Work(flops)


def norm_modulate(tokens: int, dim: int, quantized: bool) -> Work:
    """Residual (float32) and delta (half) read; residual and y (half; e4m3 and scale) written."""
    return Work(bytes=tokens * (4 * dim + 2 * dim + 4 * dim + (dim + 4 if quantized else 2 * dim)))


def qk_norm_rope(tokens: int, dim: int, head_dim: int) -> Work:
    """Half precision read and written; a float32 cosine and sine for each pair of a head."""
    return Work(bytes=tokens * (2 * dim + 2 * dim + 4 * head_dim))


def gelu_quantize(tokens: int, dim: int) -> Work:
    """Half precision read, e4m3 and a scale written."""
    return Work(bytes=tokens * (2 * dim + dim + 4))


def quantize_kv(tokens: int, dim: int) -> Work:
    """Keys and values read in half precision, written in e4m3; scales are left out."""
    return Work(bytes=2 * tokens * (2 * dim + dim))


def copy(numbers: int) -> Work:
    """A copy of float32."""
    return Work(bytes=8 * numbers)

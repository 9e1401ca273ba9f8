"""What tests of kernels share: layouts that are awkward for tiles, and random inputs.

The oracle is `reference.ops` in float64, which is itself held against a dense version of
docs/spec.md
(tests/reference/backbones/test_ops.py). A kernel may err at most twice as much as plain torch in
its type (tests/helpers/budget.py).
"""

import pytest
import torch
from torch import Tensor

from lumosx_rt.reference.backbones.ops import QKV, SelfAttention, WordBias
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure, structure_of

# tiles are 16 queries by 32 keys here; frames of 35, 12, 16, 90 tokens end beside and on their grid
LAYOUTS = {
    "streams with their own groups": ["2x5x7+1+2.1", "2x5x7+2+2"],
    "groups of one to four": ["2x3x4+1+1.2.3.4"],
    "frames of one tile": ["3x4x4+0+3", "3x4x4+3+-"],
    "no references": ["3x5x7+0+-", "3x5x7+0+-"],
    "wide frames": ["1x9x10+1+2"],
    "visibility on and off": ["2x5x7+1+2+novis", "2x5x7+1+2"],
}
HALF = [torch.bfloat16, torch.float16]
# the interpreter takes seconds for each; what tells most is quick, every other pair is slow
_QUICK = {
    (torch.float32, "groups of one to four"),
    (torch.bfloat16, "streams with their own groups"),
}
SWEEP = [
    pytest.param(
        dtype, name, id=f"{dtype}-{name}", marks=[] if (dtype, name) in _QUICK else pytest.mark.slow
    )
    for dtype in (torch.float32, torch.bfloat16)
    for name in LAYOUTS
]

HALVES = [  # where float32 takes seconds more and says no more
    pytest.param(*one.values, id=one.id, marks=pytest.mark.slow)
    if one.values[0] == torch.float32
    else one
    for one in SWEEP
]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


class Case:
    """Random inputs of both attentions for the streams of one call."""

    def __init__(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        *,
        heads: int = 2,
        head_dim: int = 24,
        seeds: int = 2,
        text_len: int = 21,
    ) -> None:
        self.layouts = [SceneLayout.from_key(key) for key in LAYOUTS[name]]
        if not all(layout.relational_visibility for layout in self.layouts):
            seeds = 1  # references see the video then, so each seed would have its own
        self.seeds, self.heads, self.head_dim = seeds, heads, head_dim
        self.structure = structure_of(self.layouts, head_dim)
        first, streams = self.layouts[0], len(self.layouts)
        size = (heads, head_dim)
        video = (streams * seeds, first.video_tokens, *size)
        condition = (streams, first.references * first.frame_tokens, *size)
        self.video = QKV(*(random(*video, seed=i, dtype=dtype) * 2 for i in (1, 2, 3)))
        # means that all tokens share, as trained keys and queries have
        drift = random(1, 1, *size, seed=4).to(dtype) * 2
        self.condition = QKV(
            *(random(*condition, seed=i, dtype=dtype) * 2 + drift for i in (5, 6, 7))
        )
        text = (streams, text_len, *size)
        self.k, self.v = (random(*text, seed=i, dtype=dtype) for i in (8, 9))
        self.bias = WordBias(random(streams, first.references, text_len, seed=10), 0.7)

    @property
    def self_attention(self) -> SelfAttention:
        return SelfAttention(self.video, self.condition, self.structure)

    @property
    def exact_self_attention(self) -> SelfAttention:
        """The call in float64."""
        return SelfAttention(double(self.video), double(self.condition), self.structure)

    def silent(self) -> SelfAttention:
        """The call as the last block makes it: without queries of the references."""
        return self.self_attention._replace(condition=self.condition._replace(q=None))

    def structure_in(self, dtype: torch.dtype) -> Structure:
        return Structure(*(t.to(dtype) if t.is_floating_point() else t for t in self.structure))

    def exact_structure(self) -> Structure:
        return self.structure_in(torch.float64)


def double(qkv: QKV) -> QKV:
    return QKV(*(None if x is None else x.double() for x in qkv))  # type: ignore[arg-type]

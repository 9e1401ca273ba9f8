"""The four operations against dense float64 versions written from docs/spec.md
(tests/helpers/oracle.py).

In bfloat16 the bound comes from data: against float64 an operation may err at most twice as much
as plain torch does on the same rounded inputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import (
    QKV,
    CrossAttention,
    NormModulate,
    QkNormRope,
    SelfAttention,
    WordBias,
)
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import Structure, rope_table, structure_of
from tests.helpers import oracle

HEADS, HEAD_DIM, TEXT = 2, 12, 7
WIDTH = HEADS * HEAD_DIM

# streams of one call: same frames, size and number of references
CASES = {
    "no references": ["2x2x3+0+-"],
    "no references, twice": ["2x2x3+0+-", "2x2x3+0+-"],
    "one lone image": ["1x3x9+1+-"],
    "one subject": ["2x3x9+0+3"],
    "unequal groups": ["3x2x9+1+1.3", "3x2x9+2+3", "3x2x9+0+2.1.2", "3x2x9+5+-"],
    "everything sees everything": ["2x3x9+1+2+novis"],
    "visibility on and off": ["2x3x3+1+2+novis", "2x3x3+1+2"],
    "tiles by place": ["2x9x10+1+2+notiling"],
    "more rows than a tile": ["1x10x11+1+1.2", "1x10x11+2+2"],
}


def layouts_of(keys: Sequence[str]) -> list[SceneLayout]:
    return [SceneLayout.from_key(key) for key in keys]


def facts_of(layout: SceneLayout) -> oracle.Facts:
    return oracle.Facts(**asdict(layout))


def relative(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| in the 2-norm; NaN where a value is none."""
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-300))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


class Attention:
    """Random q, k, v of a self-attention call, and the same sequences joined for a dense one."""

    def __init__(self, keys: Sequence[str], seeds: int, dtype: torch.dtype) -> None:
        self.layouts, self.seeds = layouts_of(keys), seeds
        first, streams = self.layouts[0], len(keys)
        self.structure = structure_of(self.layouts, HEAD_DIM)
        condition = first.tokens - first.video_tokens
        shape = (HEADS, HEAD_DIM)
        self.video = QKV(
            *(
                random(streams * seeds, first.video_tokens, *shape, seed=i, dtype=dtype) * 2
                for i in (1, 2, 3)
            )
        )
        self.condition = QKV(
            *(random(streams, condition, *shape, seed=i, dtype=dtype) * 2 for i in (4, 5, 6))
        )

    def run(self, structure: Structure | None = None) -> tuple[Tensor, Tensor]:
        structure = structure or self.structure
        video, condition = ops.self_attention(SelfAttention(self.video, self.condition, structure))
        assert condition is not None
        return video, condition

    def dense(
        self, attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """One sequence per stream and seed, one mask over all of it; the condition's rows come from
        the first seed (only without relational visibility can they tell seeds apart)."""
        video, condition = [], []
        for s, layout in enumerate(self.layouts):
            mask = torch.full((layout.tokens, 1, layout.tokens), -math.inf, dtype=torch.float64)
            for (top, bottom), (left, right) in layout.attention_ranges:
                mask[top:bottom, :, left:right] = 0
            for seed in range(self.seeds):
                row = s * self.seeds + seed
                q, k, v = (
                    torch.cat([a[row], b[s]])
                    for a, b in zip(self.video, self.condition, strict=True)
                    if a is not None and b is not None
                )
                out = attend(q, k, v, mask)
                video.append(out[: layout.video_tokens])
                if seed == 0:
                    condition.append(out[layout.video_tokens :])
        return torch.stack(video), torch.stack(condition)


def exact(q: Tensor, k: Tensor, v: Tensor, extra: Tensor) -> Tensor:
    return oracle.attention(q.double(), k.double(), v.double(), extra)


def plain_torch(q: Tensor, k: Tensor, v: Tensor, extra: Tensor) -> Tensor:
    q, k, v, mask = (x.transpose(0, 1)[None] for x in (q, k, v, extra.to(q.dtype)))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out[0].transpose(0, 1)


# -- self-attention (docs/spec.md#csam) ------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_self_attention_is_the_dense_masked_one(name: str, seeds: int) -> None:
    case = Attention(CASES[name], seeds, torch.float64)
    for actual, expected in zip(case.run(), case.dense(exact), strict=True):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_the_mask_matters() -> None:
    """Control: another grouping of the same tokens gives another answer."""
    one = Attention(["2x3x9+1+3"], 1, torch.float64)
    two = Attention(["2x3x9+2+2"], 1, torch.float64)
    assert torch.equal(one.run()[0], two.run()[0])
    assert relative(one.run()[1], two.run()[1]) > 0.1


@pytest.mark.parametrize("name", ["unequal groups", "visibility on and off"])
def test_padding_of_groups_and_members_is_never_read(name: str) -> None:
    case = Attention(CASES[name], 2, torch.float64)
    _, expected = case.run()
    index, mask = case.structure.group_index.clone(), case.structure.group_mask.clone()
    read = torch.zeros_like(mask)  # slots of groups that some reference belongs to
    members = mask.shape[2]
    for s, places in enumerate(case.structure.group_inverse):
        read[s, (places // members).unique()] = True
    padding = ~(mask & read)
    assert padding.any()
    frames = case.layouts[0].video_frames + case.layouts[0].references
    generator = torch.Generator().manual_seed(0)
    index[padding] = torch.randint(frames, (int(padding.sum()),), generator=generator)
    mask[~read] = torch.rand(int((~read).sum()), generator=generator) < 0.5
    mask[..., 0] = True
    _, actual = case.run(case.structure._replace(group_index=index, group_mask=mask))
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_without_condition_queries_there_is_no_condition_output() -> None:
    case = Attention(CASES["unequal groups"], 2, torch.float64)
    silent = QKV(None, case.condition.k, case.condition.v)
    video, condition = ops.self_attention(SelfAttention(case.video, silent, case.structure))
    assert condition is None
    assert torch.equal(video, case.run()[0])


@pytest.mark.parametrize("name", ["one subject", "unequal groups", "everything sees everything"])
def test_self_attention_in_bfloat16(name: str) -> None:
    case = Attention(CASES[name], 2, torch.bfloat16)
    results = zip(case.run(), case.dense(plain_torch), case.dense(exact), strict=True)
    for actual, plain, expected in results:
        assert actual.dtype == torch.bfloat16
        assert relative(actual, expected) <= 2 * relative(plain, expected)


# -- cross-attention and its bias (docs/spec.md#mcam) ----------------------------------------------


class Cross:
    """Random inputs of a cross-attention call; templates of both signs."""

    def __init__(
        self, keys: Sequence[str], seeds: int = 2, dtype: torch.dtype = torch.float64
    ) -> None:
        self.layouts = layouts_of(keys)
        first, streams, self.seeds = self.layouts[0], len(keys), seeds
        shape = (HEADS, HEAD_DIM)
        self.structure = structure_of(self.layouts, HEAD_DIM)
        # block means of independent queries would be small, and the bias with them
        drift = random(streams, first.references, 1, *shape, seed=1) * 2
        q = random(streams, first.references, first.frame_tokens, *shape, seed=2) + drift
        self.condition_q = q.flatten(1, 2).to(dtype)
        self.video_q = random(streams * seeds, first.video_tokens, *shape, seed=3, dtype=dtype)
        self.k, self.v = (random(streams, TEXT, *shape, seed=i, dtype=dtype) for i in (4, 5))
        self.template = random(streams, first.references, TEXT, seed=6, dtype=torch.float32)
        self.bias = WordBias(self.template, 0.7)

    def run(self, bias: WordBias | None) -> tuple[Tensor, Tensor]:
        call = CrossAttention(self.video_q, self.condition_q, self.k, self.v, bias, self.structure)
        video, condition = ops.cross_attention(call)
        assert condition is not None
        return video, condition

    def biases(self) -> list[Tensor]:
        """B of every stream's reference tokens, [reference tokens, heads, text positions]."""
        streams = zip(self.layouts, self.condition_q, self.k, self.template, strict=True)
        return [
            oracle.word_bias(facts_of(layout), q.double(), k.double(), omega.double(), 0.7)
            for layout, q, k, omega in streams
        ]


BIASED = [name for name in CASES if not name.startswith("no references")]


@pytest.mark.parametrize("name", BIASED)
def test_bias_table_unrolls_to_the_bias_of_every_token(name: str) -> None:
    case = Cross(CASES[name])
    table = ops.bias_table(case.condition_q, case.k, case.bias, case.structure)
    layout = case.layouts[0]
    assert table.shape == (len(case.layouts), HEADS, layout.references, layout.tiles, TEXT)
    unrolled = table[:, :, :, torch.from_numpy(layout.bias_tiles).long()]  # s h n p l
    expected = torch.stack(case.biases()).unflatten(1, (layout.references, -1))
    torch.testing.assert_close(unrolled.permute(0, 2, 3, 1, 4), expected, atol=1e-12, rtol=0)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("biased", [True, False])
def test_cross_attention_is_plain_for_video_and_biased_for_references(
    name: str, biased: bool
) -> None:
    case = Cross(CASES[name])
    video, condition = case.run(case.bias if biased else None)
    assert video.shape == case.video_q.shape and condition.shape == case.condition_q.shape
    for s, bias in enumerate(case.biases()):
        k, v = case.k[s], case.v[s]
        for row in range(s * case.seeds, (s + 1) * case.seeds):
            expected = oracle.attention(case.video_q[row], k, v)
            torch.testing.assert_close(video[row], expected, atol=1e-12, rtol=0)
        expected = oracle.attention(case.condition_q[s], k, v, bias if biased else None)
        torch.testing.assert_close(condition[s], expected, atol=1e-12, rtol=0)
        if biased and bias.numel():
            plain = oracle.attention(case.condition_q[s], k, v)
            assert relative(plain, expected) > 1e-2


def test_cross_attention_without_condition_queries() -> None:
    case = Cross(CASES["unequal groups"])
    call = CrossAttention(case.video_q, None, case.k, case.v, case.bias, case.structure)
    video, condition = ops.cross_attention(call)
    assert condition is None
    assert torch.equal(video, case.run(case.bias)[0])


@pytest.mark.parametrize("name", ["one subject", "unequal groups"])
def test_cross_attention_in_bfloat16(name: str) -> None:
    case = Cross(CASES[name], dtype=torch.bfloat16)
    table = ops.bias_table(case.condition_q, case.k, case.bias, case.structure)
    assert table.dtype == torch.bfloat16  # as released (docs/spec.md#precision)
    layout = case.layouts[0]
    unrolled = table[:, :, :, torch.from_numpy(layout.bias_tiles).long()].permute(0, 2, 3, 1, 4)
    exact_bias = torch.stack(case.biases()).unflatten(1, (layout.references, -1))
    assert relative(unrolled, exact_bias) <= 2 * relative(exact_bias.bfloat16(), exact_bias)
    _, actual = case.run(case.bias)
    expected, plain = [], []
    for s, bias in enumerate(case.biases()):
        expected.append(exact(case.condition_q[s], case.k[s], case.v[s], bias))
        plain.append(plain_torch(case.condition_q[s], case.k[s], case.v[s], bias))
    reference = torch.stack(expected)
    assert relative(actual, reference) <= 2 * relative(torch.stack(plain), reference)


# -- norms and rotation (docs/spec.md#block, #r2pe) ------------------------------------------------

PLACES = [(0, 0, 0), (3, 1, 2), (20, 29, 51), (22, 119, 207)]


def normed(x: Tensor, weight: Tensor | None, turned: bool) -> Tensor:
    y = oracle.rms_norm(x.double(), None if weight is None else weight.double())
    y = y.unflatten(-1, (HEADS, HEAD_DIM))
    return torch.stack([oracle.rotate(row, PLACES) for row in y]) if turned else y


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("with_weight", [True, False])
def test_qk_norm_rope(with_weight: bool, turned: bool) -> None:
    x = random(3, len(PLACES), WIDTH, seed=1) * 4 + 1
    x[0] *= 1e-3  # small enough for eps to count
    weight = random(WIDTH, seed=2) + 1 if with_weight else None
    rope = rope_table(torch.tensor(PLACES), HEAD_DIM)[:, None] if turned else None
    actual = ops.qk_norm_rope(QkNormRope(x, weight, rope, HEADS, oracle.EPS))
    torch.testing.assert_close(actual, normed(x, weight, turned), atol=1e-12, rtol=0)


def test_every_batch_row_may_have_its_own_rotation() -> None:
    x = random(2, 2, WIDTH, seed=1)
    places = torch.tensor([PLACES[:2], PLACES[2:]])
    rope = rope_table(places, HEAD_DIM)
    actual = ops.qk_norm_rope(QkNormRope(x, None, rope, HEADS, oracle.EPS))
    heads = x.unflatten(-1, (HEADS, HEAD_DIM))
    expected = torch.stack(
        [oracle.rotate(heads[0], PLACES[:2]), oracle.rotate(heads[1], PLACES[2:])]
    )
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_qk_norm_rope_in_bfloat16() -> None:
    x = random(64, len(PLACES), WIDTH, seed=1, dtype=torch.bfloat16) * 4
    weight = (random(WIDTH, seed=2) + 1).bfloat16()
    rope = rope_table(torch.tensor(PLACES), HEAD_DIM, torch.float32)[:, None]
    actual = ops.qk_norm_rope(QkNormRope(x, weight, rope, HEADS, oracle.EPS))
    assert actual.dtype == torch.bfloat16
    plain = F.rms_norm(x, (WIDTH,), weight, oracle.EPS).unflatten(-1, (HEADS, HEAD_DIM))
    turns = torch.view_as_complex(rope.permute(1, 2, 3, 0).contiguous())[:, :, None]
    pairs = torch.view_as_complex(plain.float().unflatten(-1, (-1, 2)).contiguous())
    plain = torch.view_as_real(pairs * turns).flatten(-2).bfloat16()
    expected = normed(x, weight, turned=True)
    assert relative(actual, expected) <= 2 * relative(plain, expected)


@pytest.mark.parametrize("with_gate", [True, False])
@pytest.mark.parametrize("with_delta", [True, False])
@pytest.mark.parametrize("with_norm", [True, False])
def test_norm_modulate(with_delta: bool, with_gate: bool, with_norm: bool) -> None:
    x, delta = random(3, 5, WIDTH, seed=1) * 3 + 1, random(3, 5, WIDTH, seed=2)
    x[0] = x[0] * 1e-3 + 2  # small enough for eps to count, and far from zero mean
    delta[0] *= 1e-3
    gate, scale, shift = (random(3, 1, WIDTH, seed=i) for i in (3, 4, 5))
    call = NormModulate(
        x,
        delta if with_delta else None,
        gate if with_gate else None,
        scale if with_norm else None,
        shift if with_norm else None,
        oracle.EPS,
        torch.float64,
    )
    moved, y = ops.norm_modulate(call)
    expected = x + delta * (gate if with_gate else 1.0) if with_delta else x
    torch.testing.assert_close(moved, expected, atol=1e-12, rtol=0)
    if with_norm:
        expected = oracle.layer_norm(expected) * scale + shift
    torch.testing.assert_close(y, expected, atol=1e-11, rtol=0)


def test_norm_modulate_keeps_the_residual_wide() -> None:
    """Residual stream, gate and modulation are float32; what it adds and returns is bfloat16."""
    x = random(16, 9, WIDTH, seed=1, dtype=torch.float32) * 30
    delta = random(16, 9, WIDTH, seed=2, dtype=torch.bfloat16)
    gate, scale, shift = (random(16, 1, WIDTH, seed=i, dtype=torch.float32) for i in (3, 4, 5))
    call = NormModulate(x, delta, gate, scale, shift, oracle.EPS, torch.bfloat16)
    moved, y = ops.norm_modulate(call)
    assert (moved.dtype, y.dtype) == (torch.float32, torch.bfloat16)
    expected_x = x.double() + delta.double() * gate.double()
    assert relative(moved, expected_x) < 1e-7
    expected = oracle.layer_norm(expected_x) * scale.double() + shift.double()
    plain = (F.layer_norm(expected_x.float(), (WIDTH,), eps=oracle.EPS) * scale + shift).bfloat16()
    assert relative(y, expected) <= 2 * relative(plain, expected)


@pytest.mark.parametrize("name", [field.name for field in fields(ops.Ops)])
def test_an_operation_takes_one_argument_object_of_its_name(name: str) -> None:
    call, *others = signature(getattr(ops.REFERENCE, name)).parameters.values()
    kind = call.annotation
    assert kind is getattr(ops, name.title().replace("_", "")) and kind._fields
    assert all(other.default is not other.empty for other in others)


def test_the_reference_is_these_four() -> None:
    assert ops.Ops() == ops.REFERENCE
    assert ops.REFERENCE.self_attention is ops.self_attention
    assert ops.REFERENCE.cross_attention is ops.cross_attention
    assert ops.REFERENCE.qk_norm_rope is ops.qk_norm_rope
    assert ops.REFERENCE.norm_modulate is ops.norm_modulate

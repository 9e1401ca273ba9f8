"""Self-attention against float64, on layouts whose frames end beside the tiles."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lumosx_rt.kernels.norm_modulate import quantize_rows
from lumosx_rt.kernels.quantize_kv import dequantize_kv, quantize_kv
from lumosx_rt.kernels.relational_attention import (
    group_attention,
    relational_attention,
    relational_attention_lse,
)
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.ops import QKV, SelfAttention
from tests.helpers.budget import assert_gradients_within_budget, assert_within_budget, relative
from tests.kernels.cases import HALF, SWEEP, Case


def exact(case: Case) -> tuple[Tensor, Tensor]:
    out = ops.self_attention(case.exact_self_attention)
    assert out[1] is not None
    return out[0], out[1]


@pytest.mark.parametrize("dtype, name", SWEEP)
def test_relational_attention(dtype: torch.dtype, name: str) -> None:
    case = Case(name, dtype, heads=1)
    found = relational_attention(case.self_attention)
    plain = ops.self_attention(case.self_attention)
    for part, *results in zip(("video", "condition"), found, plain, exact(case), strict=True):
        assert_within_budget(part, *results)


@pytest.mark.parametrize(
    "heads, head_dim, dtype",
    [
        (1, 10, HALF[0]),
        pytest.param(2, 32, HALF[1], marks=pytest.mark.slow),
        pytest.param(3, 64, HALF[0], marks=pytest.mark.slow),
    ],
)
def test_head_sizes_in_half_precision(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    case = Case("frames of one tile", dtype, heads=heads, head_dim=head_dim, seeds=1)
    found = relational_attention(case.self_attention)
    plain = ops.self_attention(case.self_attention)
    for part, *results in zip(("video", "condition"), found, plain, exact(case), strict=True):
        assert_within_budget(part, *results)


def test_another_grouping_gives_another_answer() -> None:
    """Control: the same tokens, grouped differently."""
    case, other = Case("frames of one tile"), Case("frames of one tile")
    other.structure = Case("frames of one tile").structure
    flipped = other.structure.group_index.flip(0), other.structure.group_inverse.flip(0)
    mask = other.structure.group_mask.flip(0)
    structure = other.structure._replace(
        group_index=flipped[0], group_mask=mask, group_inverse=flipped[1]
    )
    one = relational_attention(case.self_attention)
    two = relational_attention(case.self_attention._replace(structure=structure))
    assert torch.equal(one[0], two[0])
    assert one[1] is not None and two[1] is not None
    assert relative(one[1], two[1].double()) > 0.1


def test_the_last_block_needs_no_condition_queries() -> None:
    case = Case("frames of one tile")
    video, condition = relational_attention(case.silent())
    assert condition is None
    plain = ops.self_attention(case.silent())[0]
    assert_within_budget("video", video, plain, exact(case)[0])


@pytest.mark.parametrize("name", ["groups of one to four", "frames of one tile"])
def test_groups_alone(name: str) -> None:
    """As the hybrid calls it: no rectangle, groups that name video frames included."""
    case = Case(name, heads=1)
    plain = ops.self_attention(case.self_attention)[1]
    assert plain is not None
    assert_within_budget("condition", group_attention(case.self_attention), plain, exact(case)[1])


def test_groups_alone_without_references_are_nothing() -> None:
    case = Case("no references", heads=1, head_dim=32)
    assert group_attention(case.self_attention).numel() == 0


def test_log_sums_join_attention_over_parts() -> None:
    case = Case("groups of one to four")
    out, _, lse = relational_attention_lse(case.self_attention)
    assert case.video.q is not None
    keys = torch.cat([case.video.k, ops.over_seeds(case.condition.k, case.seeds)], 1)

    def log_sums(q: Tensor, k: Tensor) -> Tensor:
        return (torch.einsum("bqhd,bkhd->bhqk", q, k) * case.head_dim**-0.5).logsumexp(-1)

    exact = log_sums(case.video.q.double(), keys.double())
    assert_within_budget("lse", lse, log_sums(case.video.q, keys), exact)


# -- in e4m3 ---------------------------------------------------------------------------------------


def quantized_attention(q: Tensor, k: Tensor, v: Tensor, round_p: bool) -> Tensor:
    """One head, float64: queries in e4m3 by rows, the keys and values as given; p in e4m3 too
    where round_p. q [m, d], k and v [n, d]."""
    logits = q @ k.T * q.shape[-1] ** -0.5
    p = (logits - logits.amax(-1, keepdim=True)).exp()
    rounded = (p * 256).float().to(torch.float8_e4m3fn).double() / 256 if round_p else p
    return rounded @ v / p.sum(-1, keepdim=True)


def e4m3_cases(case: Case, round_p: bool) -> tuple[Tensor, Tensor]:
    """Self-attention over identically quantized operands, one head and frame after the other."""
    streams = len(case.layouts)
    kv = dequantize_kv(quantize_kv(case.video.k, case.video.v), torch.float64)
    ckv = dequantize_kv(quantize_kv(case.condition.k, case.condition.v), torch.float64)
    # queries lose to rounding only where they meet what keys do not share
    kmeans = quantize_kv(case.video.k, case.video.v).k_mean.double()
    cmeans = quantize_kv(case.condition.k, case.condition.v).k_mean.double()
    assert case.video.q is not None and case.condition.q is not None
    results = []
    for queries, own in ((case.video.q, True), (case.condition.q, False)):
        rows = quantize_rows(queries)
        rounded = rows.values.double() * rows.scale.double()
        out = torch.zeros_like(rounded)
        for b in range(queries.shape[0]):
            s = b // case.seeds if own else b
            video = s * case.seeds if not own else b
            layout = case.layouts[s]
            for first, last, frames in segments(case, s, own):
                for h in range(case.heads):
                    # q k = q8 (k - mean) + q mean: the second is not rounded
                    logits, values = [], []
                    for frame in frames:
                        in_video = frame < layout.video_frames
                        k, v = (x[video if in_video else s] for x in (kv if in_video else ckv)), 0
                        k, v = list(k)
                        mean = (kmeans[video] if in_video else cmeans[s])[h]
                        at = frame if in_video else frame - layout.video_frames
                        n = layout.frame_tokens
                        part = slice(at * n, (at + 1) * n)
                        q, q8 = queries[b, first:last, h].double(), rounded[b, first:last, h]
                        logits.append(q8 @ (k[part, h] - mean).T + (q @ mean)[:, None])
                        values.append(v[part, h])
                    joined = torch.cat(logits, 1) * case.head_dim**-0.5
                    p = (joined - joined.amax(-1, keepdim=True)).exp()
                    used = (p * 256).float().to(torch.float8_e4m3fn).double() / 256
                    weights = used if round_p else p
                    total = p.sum(-1, keepdim=True)
                    out[b, first:last, h] = weights @ torch.cat(values) / total
        results.append(out)
    assert streams
    return results[0], results[1]


def segments(case: Case, stream: int, video: bool) -> list[tuple[int, int, list[int]]]:
    """(first query, last query, frames it sees) of one stream's video, or of its references."""
    layout = case.layouts[stream]
    if video:
        return [(0, layout.video_tokens, list(range(layout.video_frames + layout.references)))]
    n, found = layout.frame_tokens, []
    for first, last in layout.groups:
        for frame in range(first, last):
            at = (frame - layout.video_frames) * n
            found.append((at, at + n, list(range(first, last))))
    return found


@pytest.mark.parametrize(
    "name", [pytest.param("streams with their own groups", marks=pytest.mark.slow), "wide frames"]
)
def test_e4m3_attention(name: str) -> None:
    case = Case(name, torch.bfloat16, heads=1, head_dim=32, seeds=1)
    found = relational_attention(case.self_attention, e4m3=True)
    exact_out, plain_out = e4m3_cases(case, False), e4m3_cases(case, True)
    for part, actual, plain, expected in zip(
        ("video", "condition"), found, plain_out, exact_out, strict=True
    ):
        assert actual is not None
        assert_within_budget(part, actual, plain.to(actual.dtype), expected)
    # and against the unquantized one, no further off than twice what the operands' rounding costs
    for part, actual, plain, expected in zip(
        ("video", "condition"), found, plain_out, exact(case), strict=True
    ):
        assert actual is not None
        assert_within_budget(f"{part}, unquantized", actual, plain.to(actual.dtype), expected)


def test_e4m3_without_references_and_without_condition_queries() -> None:
    case = Case("no references", torch.bfloat16, heads=1, head_dim=32, seeds=1)
    video, condition = relational_attention(case.silent(), e4m3=True)
    assert condition is None
    plain = e4m3_cases(case, True)[0].to(video.dtype)
    assert_within_budget("video", video, plain, e4m3_cases(case, False)[0])
    assert_within_budget("video, unquantized", video, plain, exact(case)[0])


def test_gradients_are_those_of_the_reference() -> None:
    case = Case("frames of one tile", heads=1, head_dim=10, seeds=1)

    def loss(run, *operands: Tensor) -> Tensor:
        structure = case.structure_in(operands[0].dtype)
        call = SelfAttention(QKV(*operands[:3]), QKV(*operands[3:]), structure)
        video, condition = run(call)
        return video.sin().sum() + condition.cos().sum()

    names = [f"{part}.{role}" for part in ("video", "condition") for role in "qkv"]
    given = dict(zip(names, (*case.video, *case.condition), strict=True))
    losses = (partial(loss, run) for run in (relational_attention, ops.self_attention))
    assert_gradients_within_budget(*losses, given)


def test_what_it_does_not_take_is_said() -> None:
    case = Case("frames of one tile")
    call, (q, k, v) = case.self_attention, case.video
    with pytest.raises(ValueError, match="`condition.k` must have shape"):
        short = QKV(case.condition.q, case.condition.k[:, 1:], case.condition.v)
        relational_attention(call._replace(condition=short))
    with pytest.raises(ValueError, match="frames of 16 tokens"):
        relational_attention(call._replace(video=QKV(q[:, 1:], k[:, 1:], v[:, 1:])))
    with pytest.raises(ValueError, match="seeds of 2 streams"):
        relational_attention(call._replace(video=QKV(q[1:], k[1:], v[1:])))

"""The named ways to do self-attention agree, and none stands in for another."""

import pytest
import torch

from lumosx_rt.kernels.self_attention import NAMES, frame_visibility, self_attention
from lumosx_rt.reference.backbones import ops
from tests.helpers.budget import assert_within_budget
from tests.kernels.cases import LAYOUTS, Case

SLOW = pytest.mark.slow
ON_GPUS = [name for name in NAMES if name.endswith((":cudnn", ":efficient"))]
ON_A_CPU = [name for name in NAMES if name not in ON_GPUS]


@pytest.mark.parametrize(  # our kernel alone has its own tests
    "name", [pytest.param(n, marks=[SLOW] if n == "triton" else []) for n in ON_A_CPU]
)
@pytest.mark.parametrize("layout", ["streams with their own groups", "no references"])
def test_every_implementation_is_the_same_attention(layout: str, name: str) -> None:
    torch.use_deterministic_algorithms(False)  # torch's own kernels own their scratch buffers
    case = Case(layout, heads=1, head_dim=32)
    exact = ops.self_attention(case.exact_self_attention)
    plain = ops.self_attention(case.self_attention)
    found = self_attention(name)(case.self_attention)
    for part, *results in zip(("video", "condition"), found, plain, exact, strict=True):
        assert_within_budget(part, *results)
    video, condition = self_attention(name)(case.silent())
    assert condition is None
    assert_within_budget("video alone", video, plain[0], exact[0])


def test_flex_makes_a_new_mask_for_a_new_structure() -> None:
    torch.use_deterministic_algorithms(False)
    attend = self_attention("flex")
    for layout in ("frames of one tile", "groups of one to four", "frames of one tile"):
        case = Case(layout, head_dim=32, seeds=1)
        exact = ops.self_attention(case.exact_self_attention)
        plain = ops.self_attention(case.self_attention)
        found = attend(case.self_attention)
        assert_within_budget("condition", found[1], plain[1], exact[1])


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_backend_that_is_not_there_is_an_error_not_another_one(name: str) -> None:
    case = Case("frames of one tile", head_dim=32, seeds=1)
    with pytest.raises(RuntimeError, match="No available kernel|backend"):
        self_attention(name)(case.self_attention)


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="got 'flash', accepted are triton, hybrid, hybrid:flash"):
        self_attention("flash")


@pytest.mark.parametrize("name", LAYOUTS)
def test_frame_visibility_is_the_layouts(name: str) -> None:
    case = Case(name)
    sees = frame_visibility(case.structure, case.layouts[0].video_frames)
    for layout, found in zip(case.layouts, sees, strict=True):
        n, frames = layout.frame_tokens, layout.tokens // layout.frame_tokens
        expected = torch.zeros(frames, frames, dtype=torch.bool)
        for (top, bottom), (left, right) in layout.attention_ranges:
            expected[top // n : bottom // n, left // n : right // n] = True
        assert torch.equal(found, expected)

"""Structural tensors against docs/spec.md read token by token."""

import cmath
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import rope_axes, rope_table, structure_of
from tests.helpers import oracle

FIVE = SceneLayout(video_frames=2, height=3, width=9, lone=2, subjects=(1, 2))  # five references


def facts_of(layout: SceneLayout) -> oracle.Facts:
    return oracle.Facts(**asdict(layout))


@st.composite
def streams(draw: st.DrawFn) -> list[SceneLayout]:
    """Layouts that agree in frames, size, tiling and number of references, and in nothing else."""
    total = draw(st.integers(0, 5))
    base = SceneLayout(
        video_frames=draw(st.integers(1, 3)),
        height=draw(st.integers(1, 10)),
        width=draw(st.integers(1, 10)),
        raster_tiling=draw(st.booleans()),
    )
    found = []
    for _ in range(draw(st.integers(1, 3))):
        lone = draw(st.integers(0, total))
        cuts = draw(st.lists(st.booleans(), min_size=total, max_size=total))
        subjects: list[int] = []
        for i in range(total - lone):
            if i == 0 or cuts[i]:
                subjects.append(1)
            else:
                subjects[-1] += 1
        positions, visibility = draw(st.booleans()), draw(st.booleans())
        found.append(
            replace(
                base,
                lone=lone,
                subjects=tuple(subjects),
                relational_positions=positions,
                relational_visibility=visibility,
            )
        )
    return found


# -- rotary tables (docs/spec.md#r2pe) -------------------------------------------------------------


def test_axes_of_the_released_heads() -> None:
    assert rope_axes(128) == (22, 21, 21)


@pytest.mark.parametrize("head_dim", [2, 4, 6, 24, 64, 128])
def test_rope_table_is_cosine_and_sine_of_complex_turns(head_dim: int) -> None:
    assert sum(rope_axes(head_dim)) == head_dim // 2
    places = [(0, 0, 0), (1, 2, 3), (20, 1023, 511), (1023, 7, 1023)]
    table = rope_table(torch.tensor(places, dtype=torch.int32), head_dim)
    assert table.dtype == torch.float64 and table.shape == (2, len(places), head_dim // 2)
    for row, place in enumerate(places):
        turns = [cmath.exp(1j * angle) for angle in oracle.angles(place, head_dim)]
        expected = torch.tensor([[turn.real for turn in turns], [turn.imag for turn in turns]])
        # angles reach 1023, so a float64 rounding of the frequency moves them by 1e-13
        torch.testing.assert_close(table[:, row].float(), expected, atol=1e-7, rtol=0)
        exact = torch.tensor(
            [[t.real for t in turns], [t.imag for t in turns]], dtype=torch.float64
        )
        torch.testing.assert_close(table[:, row], exact, atol=1e-12, rtol=0)


def test_angles_are_formed_in_float64_whatever_the_table_is() -> None:
    places = torch.tensor([[1023, 1023, 1023]])
    rounded = rope_table(places, 128, torch.float32)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rope_table(places, 128).float())


# -- streams ---------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(streams())
def test_streams_are_collated(layouts: list[SceneLayout]) -> None:
    structure = structure_of(layouts, head_dim=12, dtype=torch.float64)
    first = layouts[0]
    video, size = first.video_frames, (first.height, first.width)
    count, references = len(layouts), first.references
    groups, members = structure.group_index.shape[1:]
    assert groups == max(len(layout.grouping.index) for layout in layouts)
    assert structure.rope_video.shape == (2, video, *size, 6)
    assert structure.rope_references.shape == (2, count, references, *size, 6)
    assert structure.group_index.shape == structure.group_mask.shape == (count, groups, members)
    assert structure.group_inverse.shape == (count, references)
    assert structure.group_mask.any(-1).all(), "a softmax over nothing is not a number"
    for s, layout in enumerate(layouts):
        facts = facts_of(layout)
        frames = oracle.frames(facts)
        index, mask = structure.group_index[s].flatten(), structure.group_mask[s].flatten()
        for reference in range(references):
            place = int(structure.group_inverse[s, reference])
            assert mask[place] and index[place] == video + reference
            group = place // members
            keys = structure.group_index[s, group][structure.group_mask[s, group]].tolist()
            query = frames[video + reference]
            assert sorted(keys) == [
                k for k, key in enumerate(frames) if oracle.sees(facts, query, key)
            ]
        places = torch.tensor([oracle.position(facts, *token) for token in oracle.tokens(facts)])
        expected = rope_table(places, 12).reshape(2, video + references, *size, 6)
        assert torch.equal(structure.rope_video, expected[:, :video])
        assert torch.equal(structure.rope_references[:, s], expected[:, video:])


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_pooling_weights_and_tiles(height: int, width: int, raster: bool) -> None:
    layout = SceneLayout(video_frames=1, height=height, width=width, raster_tiling=raster)
    structure = structure_of([layout], head_dim=8)
    assert structure.bias_tiles.tolist() == (
        np.reshape(oracle.score_blocks(facts_of(layout)), (height, width)).tolist()
    )
    columns = -(-width // 8)
    expected = torch.zeros(-(-height // 8) * columns, height, width)
    for y in range(height):
        for x in range(width):
            expected[y // 8 * columns + x // 8, y, x] = 1 / 64  # never by the cells really there
    assert structure.tile_pool.dtype == torch.float32
    assert torch.equal(structure.tile_pool, expected)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("video_frames", replace(FIVE, video_frames=3)),
        ("height", replace(FIVE, height=4)),
        ("width", replace(FIVE, width=8)),
        ("references", replace(FIVE, lone=1)),
        ("raster_tiling", replace(FIVE, raster_tiling=False)),
    ],
)
def test_streams_that_disagree_are_refused(name: str, other: SceneLayout) -> None:
    with pytest.raises(LumosXError) as refused:
        structure_of([FIVE, other], head_dim=12)
    assert all(part in str(refused.value) for part in (name, FIVE.key, other.key))


def test_it_moves_as_one() -> None:
    moved = structure_of([FIVE], head_dim=12).to("meta")
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert [t.shape for t in moved] == [t.shape for t in structure_of([FIVE], head_dim=12)]

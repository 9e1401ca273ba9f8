"""`SceneLayout` against docs/spec.md read token by token (tests/helpers/oracle.py)."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import ROPE_TABLE, SceneLayout
from tests.helpers import oracle

SWITCHES = ("relational_positions", "relational_visibility", "raster_tiling")


def facts_of(layout: SceneLayout) -> oracle.Facts:
    return oracle.Facts(**asdict(layout))


def layouts(rows: int = 18, columns: int = 18) -> st.SearchStrategy[SceneLayout]:
    return st.builds(
        SceneLayout,
        video_frames=st.integers(1, 4),
        height=st.integers(1, rows),
        width=st.integers(1, columns),
        lone=st.integers(0, 3),
        subjects=st.lists(st.integers(1, 4), max_size=3).map(tuple),
        **{name: st.booleans() for name in SWITCHES},
    )


RELEASED = SceneLayout(video_frames=21, height=30, width=52, lone=1, subjects=(4, 4))


# -- tokens and sets (docs/spec.md#tokens, #csam) --------------------------------------------------


@given(layouts())
def test_counts(layout: SceneLayout) -> None:
    facts = facts_of(layout)
    kinds = [frame[0] for frame, _, _ in oracle.tokens(facts)]
    assert layout.tokens == len(kinds)
    assert layout.video_tokens == kinds.count("video")
    assert layout.references == len(oracle.frames(facts)) - layout.video_frames
    assert layout.frame_tokens * len(oracle.frames(facts)) == layout.tokens


@given(layouts(rows=2, columns=3))
def test_groups_are_the_sets_of_the_references(layout: SceneLayout) -> None:
    owners = [frame[:2] for frame in oracle.frames(facts_of(layout))]
    found = [owners[a:b] for a, b in layout.groups]
    assert [len(set(group)) for group in found] == [1] * len(found)
    assert len({group[0] for group in found}) == len(found)
    joined = [owner for group in found for owner in group]
    assert joined == owners[layout.video_frames :]


@given(layouts(rows=2, columns=3))
def test_attention_ranges_are_who_sees_whom(layout: SceneLayout) -> None:
    facts = facts_of(layout)
    expected = np.isfinite(oracle.visibility_mask(facts)[:, 0].numpy())
    covered = np.zeros(expected.shape, int)
    for (top, bottom), (left, right) in layout.attention_ranges:
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1  # ranges do not overlap
    assert (covered.astype(bool) == expected).all()


@given(layouts(rows=2, columns=2))
def test_grouping_says_the_same_as_data(layout: SceneLayout) -> None:
    facts = facts_of(layout)
    frames = oracle.frames(facts)
    grouping = layout.grouping
    index, mask, inverse = grouping.index, grouping.mask, grouping.inverse
    assert index.shape == mask.shape and index.shape[0] >= 1 and mask.any(axis=1).all()
    assert [a.dtype.name for a in (index, mask, inverse)] == ["int64", "bool", "int64"]
    assert not index[~mask].any(), "padding points at the first video frame"
    assert mask.sum(axis=1).max() == index.shape[1], "no more members than the largest group has"
    for reference, place in enumerate(inverse.tolist()):
        group, member = divmod(place, index.shape[1])
        query = frames[layout.video_frames + reference]
        assert mask[group, member] and index[group, member] == layout.video_frames + reference
        keys = index[group][mask[group]].tolist()
        assert len(set(keys)) == len(keys)
        assert set(keys) == {k for k, key in enumerate(frames) if oracle.sees(facts, query, key)}


@pytest.mark.parametrize("visibility", [True, False])
def test_no_references_still_have_one_group(visibility: bool) -> None:
    layout = SceneLayout(video_frames=3, height=2, width=2, relational_visibility=visibility)
    assert layout.groups == ()
    assert layout.grouping.index.tolist() == [[0]] and layout.grouping.mask.tolist() == [[True]]
    assert layout.grouping.inverse.shape == (0,)


# -- positions and tiles (docs/spec.md#r2pe, #mcam) ------------------------------------------------


@given(layouts(rows=5, columns=5))
def test_positions(layout: SceneLayout) -> None:
    facts = facts_of(layout)
    expected = [oracle.position(facts, *token) for token in oracle.tokens(facts)]
    assert layout.positions.dtype == np.int32
    assert layout.positions.tolist() == [list(place) for place in expected]


@given(layouts(rows=26, columns=26))
@example(RELEASED)
@example(SceneLayout(video_frames=1, height=45, width=80))
def test_bias_tiles_are_the_cropped_raster(layout: SceneLayout) -> None:
    assert layout.bias_tiles.dtype == np.int32
    assert layout.bias_tiles.tolist() == oracle.score_blocks(facts_of(layout))


@given(layouts(rows=26, columns=26))
def test_pooling_tiles_contain_their_tokens(layout: SceneLayout) -> None:
    rows, columns = layout.tile_rows, layout.tile_columns
    assert 8 * rows >= layout.height > 8 * (rows - 1)
    assert 8 * columns >= layout.width > 8 * (columns - 1)
    assert layout.tiles == rows * columns
    expected = [y // 8 * columns + x // 8 for _, y, x in oracle.tokens(facts_of(layout))]
    assert layout.pooling_tiles.tolist() == expected[: layout.frame_tokens]


def test_share_of_tokens_that_get_another_tiles_score() -> None:
    """docs/spec.md#m2 counts them: 82% at both released sizes, none where the width is a multiple
    of 8."""
    shares = []
    for height, width in ((30, 52), (52, 30), (45, 80)):
        layout = SceneLayout(video_frames=1, height=height, width=width)
        shares.append(round((layout.bias_tiles != layout.pooling_tiles).mean(), 2))
    assert shares == [0.82, 0.82, 0.0]


# -- keys ------------------------------------------------------------------------------------------


@given(layouts())
@example(RELEASED)
def test_a_key_names_one_layout(layout: SceneLayout) -> None:
    assert SceneLayout.from_key(layout.key) == layout


@given(layouts(), layouts())
def test_different_layouts_have_different_keys(one: SceneLayout, two: SceneLayout) -> None:
    assert (one.key == two.key) == (one == two)


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("21x30x52+1+4.4", {"lone": 1, "subjects": (4, 4)}),
        ("21x30x52+1+-", {"lone": 1}),
        ("21x30x52+0+3+novis", {"subjects": (3,), "relational_visibility": False}),
        (
            "21x30x52+0+-+nopos+notiling",
            {"relational_positions": False, "raster_tiling": False},
        ),
    ],
)
def test_keys_in_words(key: str, fields: dict[str, Any]) -> None:
    layout = SceneLayout(video_frames=21, height=30, width=52, **fields)
    assert layout.key == key


BAD_KEYS = [
    *("", "21", "21x30x52", "21x30x52+1", "21x30x52+1+", "x30x52+1+-", "21x30x52+1+4.", "a"),
    *("21x30x52+1+4..4", "21x30x52+-1+4", "21x30x52+1+-.4", "21x30x52+1+4.4\n", " 21x30x52+1+4"),
    *(
        "21x30x52+1+4+",
        "21x30x52+1+4+vis",
        "21x30x52+1+4+novis+x",
        "21x30x52+1+4/../..",
        "1e1x3x5+1+-",
    ),
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused_with_an_example(key: str) -> None:
    with pytest.raises(LumosXError) as refused:
        SceneLayout.from_key(key)
    assert key in str(refused.value) and "21x30x52+1+4.4" in str(refused.value)
    assert all(name in str(refused.value) for name in ("+nopos", "+novis", "+notiling"))


symbols = st.text("0123456789x+.-nopvistlg\n", max_size=3)


@given(layouts(), st.integers(0, 40), st.integers(0, 3), symbols)
def test_a_damaged_key_is_a_layout_or_a_refusal(
    layout: SceneLayout, start: int, cut: int, put: str
) -> None:
    text = layout.key[:start] + put + layout.key[start + cut :]
    try:
        layout = SceneLayout.from_key(text)
    except LumosXError:
        return
    assert SceneLayout.from_key(layout.key) == layout


def test_a_key_of_impossible_numbers_is_refused() -> None:
    endless = "9" * 5000
    for width in (10**40, endless):
        with pytest.raises(LumosXError):
            SceneLayout.from_key(f"21x30x{width}+1+-")
    for key in ("0x30x52+1+-", "21x30x52+1+4.0", "9999x30x52+1+-", f"21x30x52+1+4.{endless}"):
        with pytest.raises(LumosXError):
            SceneLayout.from_key(key)


# -- limits and errors -----------------------------------------------------------------------------


def last_position(facts: oracle.Facts) -> int:
    """The largest position on any axis; within a frame the last token has it."""
    corner = (facts.height - 1, facts.width - 1)
    return max(max(oracle.position(facts, frame, *corner)) for frame in oracle.frames(facts))


near = st.integers(-2, 2)


@given(
    axis=st.sampled_from(["time", "height", "width"]),
    off=near,
    lone=st.integers(0, 3),
    subjects=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    relational=st.booleans(),
)
def test_rotary_tables_limit_every_axis(
    axis: str, off: int, lone: int, subjects: tuple[int, ...], relational: bool
) -> None:
    slots = lone + (len(subjects) if relational else sum(subjects))
    diagonal = max(subjects, default=1) if relational else 1
    sizes = {"video_frames": 1, "height": 1, "width": 1}
    if axis == "time":
        sizes["video_frames"] = ROPE_TABLE - slots + off
    else:
        sizes[axis] = ROPE_TABLE // diagonal + off
    fields: dict[str, Any] = {"lone": lone, "subjects": subjects, **sizes}
    facts = oracle.Facts(**fields, relational_positions=relational)
    if last_position(facts) < 1024:
        assert SceneLayout(**fields, relational_positions=relational).tokens > 0
    else:
        with pytest.raises(LumosXError, match=f"{last_position(facts)} is needed.* 1023"):
            SceneLayout(**fields, relational_positions=relational)


def test_one_error_names_every_problem() -> None:
    with pytest.raises(LumosXError) as refused:
        SceneLayout(video_frames=0, height=-1, width=0, lone=-2, subjects=(3, 0, 1, -4))
    message = str(refused.value)
    wrong = {
        "video_frames": (1, 0),
        "height": (1, -1),
        "width": (1, 0),
        "lone": (0, -2),
        "subjects[1]": (1, 0),
        "subjects[3]": (1, -4),
    }
    for name, (least, value) in wrong.items():
        assert f"{name} must be at least {least}, got {value}" in message
    assert "subjects[0]" not in message and "subjects[2]" not in message


# -- a value ---------------------------------------------------------------------------------------


def test_it_is_frozen_and_hashable() -> None:
    fields: dict[str, Any] = {"video_frames": 2, "height": 3, "width": 4}
    one = SceneLayout(**fields, subjects=(2, 1))
    assert one.positions.size and one.bias_tiles.size and one.grouping  # cached values beside it
    two = SceneLayout(**fields, subjects=[np.int64(2), np.int64(1)])  # type: ignore[arg-type]
    assert one == two and hash(one) == hash(two) and len({one, two}) == 1
    others = [SceneLayout(**fields, subjects=(2, 1), **{name: False}) for name in SWITCHES]
    assert len({one, *others}) == 1 + len(SWITCHES)
    with pytest.raises(FrozenInstanceError):
        one.width = 5  # type: ignore[misc]


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout as S; "
        "l = S.from_key('2x3x9+1+2'); l.positions, l.bias_tiles, l.grouping, l.attention_ranges; "
        "print(sorted({'torch', 'triton', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

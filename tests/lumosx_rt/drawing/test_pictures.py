"""The two pictures for people: right blocks, right frames, nothing cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lumosx_rt.drawing import layout as layout_drawing
from lumosx_rt.drawing import typesetting
from lumosx_rt.drawing.contact_sheet import contact_sheet
from lumosx_rt.drawing.layout import attention_blocks, layout_picture
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout

LAYOUT = SceneLayout(video_frames=5, height=4, width=9, lone=2, subjects=(3, 1))
WORDS = ["park", "kite", "woman", "red hat", "coat", "man"]
CAPTION = "A woman with a red hat and a coat and a man with a red hat in a park."


def array(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB")).astype(int)


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def count(image: Image.Image, colour: str) -> int:
    return int((array(image) == rgb(colour)).all(-1).sum())


# -- layout -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 21),
    st.integers(0, 4),
    st.lists(st.integers(1, 4), max_size=3),
    st.booleans(),
)
def test_the_matrix_shows_who_sees_whom(video, lone, subjects, relational):
    layout = SceneLayout(
        video_frames=video,
        height=2,
        width=3,
        lone=lone,
        subjects=tuple(subjects),
        relational_visibility=relational,
    )
    # docs/spec.md#csam by hand: the video sees all, a set sees itself
    sets = ["video", *range(lone), *(f"s{s}" for s, n in enumerate(subjects) for _ in range(n))]
    colours = layout_drawing._colours(layout)
    assert len(colours) == len(sets) - 1
    image, edges = attention_blocks(layout, colours)
    seen = array(image)
    for row, query in enumerate(sets):
        for column, key in enumerate(sets):
            y, x = (edges[row] + edges[row + 1]) // 2, (edges[column] + edges[column + 1]) // 2
            hidden = seen[y, x].tolist() == rgb(layout_drawing.HIDDEN)
            assert hidden == (relational and query != "video" and query != key), (query, key)


def test_the_matrix_is_to_scale():
    _, edges = attention_blocks(LAYOUT, layout_drawing._colours(LAYOUT))
    expected = [0.0, *(480 * n / 11 for n in range(5, 12))]
    assert np.abs(np.array(edges) - expected).max() <= 0.5
    many = SceneLayout(video_frames=81, height=1, width=1, subjects=(8, 8))
    _, edges = attention_blocks(many, layout_drawing._colours(many))
    assert min(np.diff(edges)) >= layout_drawing.LEAST_BLOCK


sizes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 90)), min_size=1, max_size=12)


@given(sizes, st.integers(50, 1500))
def test_edges_are_proportional_above_the_least(blocks, total):
    weights, least = zip(*blocks, strict=True)
    edges = layout_drawing._edges(weights, least, total)
    lengths = np.diff(edges)
    assert edges[0] == 0 and edges[-1] == max(total, sum(least))
    assert (lengths >= np.array(least) - 1).all()
    # those that were not widened share what is left by weight
    free = [i for i in range(len(blocks)) if lengths[i] > least[i] + 1]
    scales = [lengths[i] / weights[i] for i in free]
    assert all(abs(lengths[i] - scales[0] * weights[i]) <= 1 + weights[i] for i in free)
    if all(weight * total >= low * sum(weights) for weight, low in blocks):
        shares = np.array(weights) * total / sum(weights)
        assert np.abs(lengths - shares).max() <= 1


def test_groups_and_pictures_have_their_own_colours():
    colours = layout_drawing._colours(LAYOUT)
    assert len(set(colours)) == 6
    picture = layout_picture(LAYOUT, WORDS)
    assert all(count(picture, colour) > 300 for colour in (*colours, layout_drawing.VIDEO))
    red, green, blue = rgb(layout_drawing.VIDEO)
    assert max(red, green, blue) - min(red, green, blue) > 60  # nothing like the grey of not seen
    with_legend = layout_drawing._legend(LAYOUT, colours)
    for colour in (layout_drawing.VIDEO, layout_drawing.HIDDEN, colours[0]):
        assert count(with_legend, colour) > 100


def test_unbound_references_are_flagged():
    bound = layout_picture(LAYOUT, WORDS, CAPTION + " A kite.")
    flagged = layout_picture(LAYOUT, WORDS, CAPTION)
    assert count(bound, typesetting.ALARM) == 0
    assert count(flagged, typesetting.ALARM) > 50
    assert count(layout_picture(LAYOUT, WORDS), typesetting.ALARM) == 0


def test_words_are_looked_for_as_words():
    assert layout_drawing._occurrences("man", "A woman, a man and (man).") == [(11, 14), (20, 23)]
    assert layout_drawing._occurrences("red hat", "A red hat, two red hats") == [(2, 9)]
    assert layout_drawing._occurrences(" ", "a b") == []


def strip(caption: str, spans: list[list[tuple[int, int]]], width: int = 600) -> np.ndarray:
    colours = ["#ff0000", "#00ff00", "#0000ff"]
    return array(layout_drawing._bound_caption(caption, spans, colours, width))


def test_bound_letters_stand_on_their_colour():
    caption = "A woman with a red hat"
    pixels = strip(caption, [[(2, 7)], [(15, 22)], []])
    places = typesetting.wrapped(caption, 18, 600)
    for reference, colour, (start, stop) in ((0, "#ff0000", (2, 7)), (1, "#00ff00", (15, 22))):
        columns = np.flatnonzero((pixels == rgb(colour)).all(-1).any(0))
        left, right = places[start][1], places[stop][1] if stop < len(places) else columns[-1]
        assert abs(columns[0] - left) <= 1.5 and abs(columns[-1] - right) <= 1.5, reference
    assert not (pixels == rgb("#0000ff")).all(-1).any()


def test_two_references_on_one_word_both_show():
    pixels = strip("A red hat", [[(2, 9)], [(2, 9)], [(6, 9)]])
    for colour in ("#ff0000", "#00ff00", "#0000ff"):
        assert (pixels == rgb(colour)).all(-1).any()


@given(st.text(max_size=60), st.integers(30, 300))
def test_text_is_wrapped_inside_its_paper(text, width):
    text = typesetting.drawable(text)
    places = typesetting.wrapped(text, 13, width)
    assert len(places) == len(text)
    font = typesetting.font_of(13)
    lines: dict[int, str] = {}
    for letter, (line, x) in zip(text, places, strict=True):
        lines[line] = lines.get(line, "") + letter
        if not letter.isspace():
            assert x + font.getlength(letter) <= width + 2
    assert "".join(lines[line] for line in sorted(lines)) == text
    assert list(lines) == sorted(lines)


def test_drawable_text_is_as_long_as_the_original():
    assert typesetting.drawable("Caf\u00e9\n\u201ck\u00e4se\u201d \u4e2d") == 'Cafe "kase" \u4e2d'


def test_nothing_is_drawn_to_the_border():
    words = ["a very long description of a park that goes on and on", "", "x" * 80, "hat", "b", "c"]
    picture = layout_picture(LAYOUT, words, "word " * 80 + "y" * 300)
    pixels = array(picture)
    border = typesetting.MARGIN - 2
    pixels[border:-border, border:-border] = 255
    assert (pixels == 255).all()


def test_layouts_without_references():
    empty = SceneLayout(video_frames=3, height=2, width=2)
    picture = layout_picture(empty, [], "An empty square.")
    assert picture.width > 1000 and count(picture, typesetting.ALARM) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((WORDS[:3],), "3 words for 6 references"),
        ((WORDS, CAPTION, [[]]), "1 lists of spans for 6 references"),
        ((WORDS, "short", [[(2, 9)], [], [], [], [], []]), "span 2 to 9 is not in the caption"),
        ((WORDS, None, [[]] * 6), "spans without a caption"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, reason):
    with pytest.raises(LumosXError, match=reason):
        layout_picture(LAYOUT, *arguments)


# -- contact sheet ------------------------------------------------------------------------------


def numbered(frames: int, height: int, width: int) -> np.ndarray:
    """Frames of one colour each, with a marked corner pixel."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[:] = (np.arange(frames) + 1).reshape(-1, 1, 1, 1) * [2, 3, 1]
    clip[:, 0, 0] = (250, 0, 250)
    return clip


def blocks(sheet: Image.Image, colour: np.ndarray) -> tuple[int, int, int, int]:
    """The box of the pixels of a colour: left, top, right, bottom."""
    rows, columns = np.nonzero((array(sheet) == colour).all(-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_frames_are_chosen_evenly_and_stand_in_order():
    clip = numbered(41, 64, 144)
    sheet = contact_sheet([], clip, columns=4)
    pixels = array(sheet)
    shown = [i for i in range(41) if (pixels == clip[i, 9, 9]).all(-1).sum() > 1000]
    assert len(shown) == 8 and shown[0] == 0 and shown[-1] == 40
    assert max(np.diff(shown)) - min(np.diff(shown)) <= 1
    corners = [blocks(sheet, clip[i, 9, 9])[:2] for i in shown]
    assert [y for _, y in corners] == sorted(y for _, y in corners)
    assert len({x for x, _ in corners}) == 4 and len({y for _, y in corners}) == 2


def test_small_frames_are_enlarged_by_a_whole_number():
    clip = numbered(2, 64, 144)
    sheet = contact_sheet([("a", clip[0])], clip)
    left, top, right, bottom = blocks(sheet, clip[1, 9, 9])
    assert (right - left, bottom - top) == (288, 128)
    pixels = array(sheet)
    assert (pixels[top : top + 2, left : left + 2] == (250, 0, 250)).all()
    assert (pixels[top : top + 2, left + 2 : left + 4] == clip[1, 9, 9]).all()


def test_large_frames_are_scaled_down():
    clip = numbered(2, 480, 832)
    left, top, right, bottom = blocks(contact_sheet([], clip), clip[1, 99, 99])
    assert (right - left, bottom - top) == (416, 240)


def test_references_stand_beside_with_their_words():
    clip = numbered(3, 64, 144)
    looks = [np.full((64, 144, 3), shade, np.uint8) for shade in (40, 80, 120)]
    named = contact_sheet([(word, look) for word, look in zip("abc", looks, strict=True)], clip)
    silent = contact_sheet([("", look) for look in looks], clip)
    frames_left = blocks(named, clip[0, 9, 9])[0]
    previous = 0
    for shade in (40, 80, 120):
        left, top, right, bottom = blocks(named, np.array([shade] * 3))
        assert right < frames_left and top > previous
        # the word is drawn below the picture, and nothing else there
        label = (slice(bottom + 2, bottom + 20), slice(left, right))
        assert (array(named)[label] < 100).any() and (array(silent)[label] > 250).all()
        previous = bottom


def test_titles_and_odd_pictures_fit():
    tall = np.full((300, 20, 3), 60, np.uint8)
    sheet = contact_sheet([("long word " * 12, tall)], numbered(1, 64, 144), title="title " * 60)
    pixels = array(sheet)
    border = typesetting.MARGIN - 2
    pixels[border:-border, border:-border] = 255
    assert (pixels == 255).all()
    left, top, right, bottom = blocks(sheet, np.array([60] * 3))
    assert bottom - top == 128 and right - left == round(20 * 128 / 300)


def test_other_frames_are_refused():
    with pytest.raises(LumosXError, match=r"got float32 \[2, 4, 4, 3\]"):
        contact_sheet([], np.zeros((2, 4, 4, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(LumosXError, match="columns must be at least 1"):
        contact_sheet([], numbered(1, 4, 4), columns=0)

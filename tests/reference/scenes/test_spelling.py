"""Characters that the eye does not tell apart: named, and never taken for each other."""

import pytest
from PIL import Image

from lumosx_rt.reference.scenes.scene import Reference, Scene
from lumosx_rt.reference.scenes.spelling import explain_spelling


@pytest.mark.parametrize(
    ("word", "caption", "named"),
    [
        ("straw hat", "a straw\u200b hat", "U+200B (zero width space) at 7"),
        ("backpack", "a back\u00adpack", "U+00AD (soft hyphen) at 6"),
        ("t-shirt", "a t\u2011shirt", "U+2011 (non-breaking hyphen) at 3"),
        ("t-shirt", "a t\u2010shirt", "U+2010"),
        ("t\u2011shirt", "a t-shirt", "the picture's word has U+2011"),
        ("hat", "a h\u0430t", "U+0430 (cyrillic small letter a)"),
        ("h\u0430t", "a hat", "the picture's word has U+0430"),
        ("hat", "a h\u2060at", "U+2060 (word joiner)"),
        ("hat", "a \u202ehat", None),  # it stands there as it is
        ("hat\u200d", "a hat", "the picture's word has U+200D"),
        ("café", "a cafe", "U+00E9"),
        ("cap", "a hat", None),
    ],
)
def test_what_looks_alike_is_named(word, caption, named):
    scene = Scene("x", caption, objects=[Reference(word, Image.new("RGB", (8, 8)))])
    errors, _ = scene.problems()
    if word in caption:
        assert not errors and explain_spelling(word, caption) is None
        return
    (error,) = errors
    assert f"'{word}' is not in the caption" in error
    assert (named in error) if named else ("U+" not in error)


def test_a_word_that_is_unlike_is_not_explained():
    assert explain_spelling("", "a hat") is None
    assert explain_spelling("hat", "") is None
    assert explain_spelling("\u200b", "a hat") is None

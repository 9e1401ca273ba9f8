"""The text as the encoder sees it, before it is cut into tokens."""

import html
import re
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lumosx_rt.reference.errors import BadInput

MAX_TEXT_BYTES = 1 << 20
MOST_MARKS = 30  # marks on one letter, as in Unicode's stream-safe text; more take minutes to order


def check_text(text: Any, what: str) -> None:
    """Raise LumosXError for what is no text, or text that cannot be cleaned in reasonable time."""
    if not isinstance(text, str):
        raise BadInput(f"{what} must be text, got {text!r:.80}")
    if len(text) > MAX_TEXT_BYTES:
        raise BadInput(f"{what} has {len(text):,} characters, accepted are {MAX_TEXT_BYTES:,}")
    marks = 0
    for char in text if not text.isascii() else "":
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks > MOST_MARKS:
            raise BadInput(f"{what} has more than {MOST_MARKS} marks on one letter; take some out")


def clean_text(text: str) -> str:
    """Captions and words are cleaned the same way: encoding, entities, white space
    (docs/spec.md#text).

    Repairs broken encodings (ftfy), unescapes HTML twice, strips, collapses white space. Case and
    punctuation stay.
    """
    import ftfy  # slow to import, and not every user of a scene cleans text

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


# The fixed negative prompt of the Wan2.1 configuration.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
    "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def find_spans(sequence: ArrayLike, pattern: ArrayLike) -> NDArray[np.bool_]:
    """Mark every contiguous occurrence of `pattern` in `sequence`, overlaps included
    (docs/spec.md#word-masks).

    sequence: ids [length]. pattern: ids [words]; an empty one occurs nowhere.
    Returns bool [length].
    """
    ids, wanted = np.asarray(sequence), np.asarray(pattern)
    mask = np.zeros(len(ids), np.bool_)
    if not 0 < len(wanted) <= len(ids):
        return mask
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(wanted))
    starts = np.flatnonzero((windows == wanted).all(axis=1))
    mask[(starts[:, None] + np.arange(len(wanted))).ravel()] = True
    return mask


def word_mask(prompt_ids: ArrayLike, word_ids: ArrayLike, eos_id: int) -> NDArray[np.bool_]:
    """Return which prompt tokens spell a word: bool [text_len] (docs/spec.md#word-masks).

    word_ids: the word tokenised alone; it is cut at its first end token, and a word of which
    nothing is left is found nowhere.
    """
    word = np.asarray(word_ids)
    ends = np.flatnonzero(word == eos_id)
    return find_spans(prompt_ids, word[: ends[0]] if len(ends) else word)

"""Where an entity's word stands in a tokenised prompt. Numpy only."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def find_spans(sequence: ArrayLike, pattern: ArrayLike) -> NDArray[np.bool_]:
    """Marks every contiguous occurrence of `pattern` in `sequence`, overlaps included (SPEC 5).

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
    """Which prompt tokens spell a word: bool [text_len] (SPEC 5).

    word_ids: the word tokenised alone; it is cut at its first end token, and a word of which
    nothing is left is found nowhere.
    """
    word = np.asarray(word_ids)
    ends = np.flatnonzero(word == eos_id)
    return find_spans(prompt_ids, word[: ends[0]] if len(ends) else word)

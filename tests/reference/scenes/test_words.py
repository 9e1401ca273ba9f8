"""Entity-word spans against recorded numbers and a search written out by hand."""

import json
import os
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lumosx_rt.reference.scenes.words import find_spans, word_mask

GOLDEN = Path(os.environ.get("LUMOSX_GOLDEN_DIR", Path(__file__).parents[2] / "golden"))


def test_recorded_words() -> None:
    case = json.loads((GOLDEN / "span_finder.json").read_text())
    assert case["words"]
    for word in case["words"]:
        mask = word_mask(case["prompt_ids"], word["ids"], case["eos_id"])
        assert np.flatnonzero(mask).tolist() == word["positions"], word["word"]
        assert mask.shape == tuple(word["shape"])


def test_recorded_patterns() -> None:
    case = json.loads((GOLDEN / "span_finder.json").read_text())
    assert case["raw_cases"]
    for raw in case["raw_cases"]:
        assert find_spans(raw["seq"], raw["pattern"]).tolist() == raw["mask"], raw["pattern"]


ids = st.lists(st.integers(0, 2), max_size=12)


@given(sequence=ids, pattern=ids)
def test_against_a_search_by_hand(sequence: list[int], pattern: list[int]) -> None:
    expected = [False] * len(sequence)
    for start in range(len(sequence)):
        if pattern and sequence[start : start + len(pattern)] == pattern:
            for place in range(start, start + len(pattern)):
                expected[place] = True
    assert find_spans(sequence, pattern).tolist() == expected


@given(sequence=ids, word=ids)
def test_a_word_ends_at_its_first_end_token(sequence: list[int], word: list[int]) -> None:
    body = word[: word.index(1)] if 1 in word else word
    assert (word_mask(sequence, word, 1) == find_spans(sequence, body)).all()


def test_empty_words_and_sequences() -> None:
    assert not word_mask([5, 6, 1, 0], [1, 0, 0, 0], 1).any()
    assert not word_mask([5, 6, 1, 0], [], 1).any()
    assert word_mask([], [5], 1).shape == (0,)

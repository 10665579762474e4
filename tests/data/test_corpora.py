"""Corpora of single languages: what counts as a word."""

from __future__ import annotations

import numpy as np
import pytest
from fairseq.data import Dictionary

from zcode_plugin.data.corpora import word_starts
from zcode_plugin.data.masking import Masking
from zcode_plugin.data.noise import Noise, split_words

PIECES = [
    "\u2581Wort",
    "teil",
    "\u2581",
    "\u6211\u4eec",
    "\u8bf4",
    "\u0e20\u0e32\u0e29\u0e32",
    "\u3092",
    "\uac00",
]


@pytest.fixture
def dictionary() -> Dictionary:
    made = Dictionary()
    for piece in PIECES:
        made.add_symbol(piece)
    return made


def test_a_piece_of_a_script_without_spaces_is_a_word(dictionary: Dictionary) -> None:
    starts = word_starts(dictionary)
    found = {piece: bool(starts[dictionary.index(piece)]) for piece in PIECES}
    # Korean has spaces between words.
    assert [piece for piece, begins in found.items() if not begins] == ["teil", "\uac00"]


def test_a_sentence_without_spaces_is_noised_and_masked_in_parts(dictionary: Dictionary) -> None:
    starts = word_starts(dictionary)
    index = dictionary.index
    sentence = np.array([index(PIECES[2]), *[index(PIECES[3]), index(PIECES[4])] * 10])
    assert len(split_words(sentence, starts)) == 21
    ordinary, mask = np.arange(4, len(dictionary)), dictionary.unk()
    rng = np.random.default_rng(1)
    hidden = [Masking().apply(sentence, starts, ordinary, mask, rng)[1].mean() for _ in range(200)]
    assert np.mean(hidden) == pytest.approx(0.15, abs=0.02)
    noised = [Noise().apply(sentence, starts, mask, rng) for _ in range(50)]
    assert all(not np.array_equal(one, sentence) for one in noised)


def test_without_marks_each_symbol_is_a_word() -> None:
    made = Dictionary()
    made.add_symbol("teil")
    assert word_starts(made).all()

"""What counts as a word, by the marks of a vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from fairseq.data import Dictionary

from zcode_plugin.data.masking import Masking
from zcode_plugin.data.noise import Noise
from zcode_plugin.data.words import WordPieces


def dictionary(*symbols: str) -> Dictionary:
    made = Dictionary()
    for symbol in symbols:
        made.add_symbol(symbol)
    return made


def words(vocabulary: Dictionary, *symbols: str) -> list[str]:
    tokens = np.array([vocabulary.index(symbol) for symbol in symbols], dtype=np.int64)
    assert vocabulary.unk() not in tokens
    found = WordPieces.of(vocabulary).split(tokens)
    return [" ".join(vocabulary[token] for token in word) for word in found]


SPACED = (
    "\u2581Wort", "teil", "\u2581", "\u6211\u4eec", "\u8bf4", "\u0e20\u0e32\u0e29\u0e32", "\u3092",
    "\uac00",
)  # fmt: skip


def test_sentencepiece_marks_the_begin_of_a_word() -> None:
    made = dictionary(*SPACED, "@@")
    assert words(made, "\u2581Wort", "teil", "teil", "\u2581Wort", "@@") == [
        "\u2581Wort teil teil",
        "\u2581Wort @@",
    ]
    assert words(made, "teil", "\u2581Wort") == ["teil", "\u2581Wort"]
    # A piece of a script without spaces is a word; Korean has them.
    assert words(made, *SPACED) == ["\u2581Wort teil", *SPACED[2:6], "\u3092 \uac00"]


def test_subword_nmt_marks_all_but_the_last_piece() -> None:
    made = dictionary("Wort", "Wör@@", "ter@@", "buch", ".")
    assert words(made, "Wort", "Wör@@", "ter@@", "buch", "Wör@@", "buch", ".") == [
        "Wort",
        "Wör@@ ter@@ buch",
        "Wör@@ buch",
        ".",
    ]
    # A sentence that is cut in the middle of a word.
    assert words(made, "Wör@@", "buch", "ter@@") == ["Wör@@ buch", "ter@@"]


def test_without_marks_each_symbol_is_a_word() -> None:
    assert words(dictionary("teil", "a@@b"), "teil", "a@@b", "teil") == ["teil", "a@@b", "teil"]
    assert words(dictionary("teil")) == []


def test_pieces_of_subword_nmt_are_hidden_together() -> None:
    made = dictionary("Wör@@", "buch")
    sentence = np.array([made.index("Wör@@"), made.index("buch")] * 50)
    pieces, ordinary = WordPieces.of(made), np.arange(4, len(made))
    _, chosen = Masking(0.3).apply(sentence, pieces, ordinary, made.unk(), np.random.default_rng(1))
    assert 0 < chosen.sum() < 100
    assert np.array_equal(chosen[::2], chosen[1::2])


def test_a_sentence_without_spaces_is_noised_and_masked_in_parts() -> None:
    made = dictionary(*SPACED)
    pieces, index = WordPieces.of(made), made.index
    sentence = np.array([index(SPACED[2]), *[index(SPACED[3]), index(SPACED[4])] * 10])
    assert len(pieces.split(sentence)) == 21
    ordinary, mask = np.arange(4, len(made)), made.unk()
    rng = np.random.default_rng(1)
    hidden = [Masking().apply(sentence, pieces, ordinary, mask, rng)[1].mean() for _ in range(200)]
    assert np.mean(hidden) == pytest.approx(0.15, abs=0.02)
    noised = [Noise().apply(sentence, pieces, mask, rng) for _ in range(50)]
    assert all(not np.array_equal(one, sentence) for one in noised)

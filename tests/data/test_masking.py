"""Masking for mlm: rates within binomial bounds, whole words, and nothing else is touched."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcode_plugin.data.masking import Masking
from zcode_plugin.data.words import WordPieces
from zcode_plugin.errors import UserError

MASK = 0
ORDINARY = np.arange(1000, 2000)
# Symbols 10, 20, ... begin words; others continue them.
PIECES = WordPieces(np.arange(100) % 10 == 0, np.zeros(100, dtype=bool))


def within_bound(count: int, trials: int, probability: float) -> bool:
    """Less than five standard deviations from the mean: 1 in 2 million for a right rate."""
    deviation = math.sqrt(trials * probability * (1 - probability))
    return abs(count - trials * probability) <= 5 * deviation


@pytest.mark.parametrize(("replace", "keep"), [(0.1, 0.1), (0.3, 0.0), (0.0, 0.4)])
def test_shares_are_those_that_are_asked_for(replace: float, keep: float) -> None:
    masking = Masking(0.15, replace, keep, whole_words=False)
    tokens = np.arange(1, 100).repeat(1000)
    source, chosen = masking.apply(tokens, PIECES, ORDINARY, MASK, np.random.default_rng(1))
    number = int(chosen.sum())
    assert within_bound(number, len(tokens), 0.15)
    masked, stayed = (source[chosen] == MASK).sum(), (source[chosen] == tokens[chosen]).sum()
    random = np.isin(source[chosen], ORDINARY).sum()
    assert masked + stayed + random == number
    assert within_bound(masked, number, 1 - replace - keep)
    assert within_bound(random, number, replace)
    assert within_bound(stayed, number, keep)


def test_pieces_of_a_word_are_chosen_together() -> None:
    tokens = np.array([10, 11, 12, 20, 30, 31] * 500)
    _, chosen = Masking(0.3).apply(tokens, PIECES, ORDINARY, MASK, np.random.default_rng(1))
    for row in chosen.reshape(-1, 6):
        assert len({*row[:3]}) == 1
        assert len({*row[4:]}) == 1
    assert within_bound(int(chosen.reshape(-1, 6)[:, [0, 3, 4]].sum()), 1500, 0.3)
    _, single = Masking(0.3, whole_words=False).apply(
        tokens, PIECES, ORDINARY, MASK, np.random.default_rng(1)
    )
    assert any(len({*row[:3]}) == 2 for row in single.reshape(-1, 6))


@given(
    tokens=st.lists(st.integers(1, 99), max_size=20), seed=st.integers(0, 99), whole=st.booleans()
)
def test_something_is_chosen_and_the_rest_stays(tokens: list[int], seed: int, whole: bool) -> None:
    before = np.array(tokens, dtype=np.int64)
    masking = Masking(0.05, whole_words=whole)
    source, chosen = masking.apply(before, PIECES, ORDINARY, MASK, np.random.default_rng(seed))
    assert before.tolist() == tokens, "the sentence itself was changed"
    assert source.shape == chosen.shape == before.shape
    assert chosen.any() == bool(tokens)
    assert source[~chosen].tolist() == before[~chosen].tolist()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((0.0, 0.1, 0.1), r"--mlm-mask 0.0 must lie in \(0, 1\]"),
        ((1.5, 0.1, 0.1), r"--mlm-mask 1.5 must lie in"),
        ((0.15, 0.6, 0.5), "--mlm-random 0.6 and --mlm-keep 0.5 must not be negative"),
        ((0.15, -0.1, 0.5), "--mlm-random -0.1"),
    ],
)
def test_impossible_rates_are_refused(rates: tuple[float, float, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Masking(*rates)

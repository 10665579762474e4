"""Noise for denoising auto-encoding: invariants and rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcode_plugin.data.noise import (
    Noise,
    delete_words,
    infill_spans,
    local_shuffle,
    mask_words,
)
from zcode_plugin.data.words import WordPieces
from zcode_plugin.errors import UserError

MASK = 0
# Symbols 10, 20, ... begin words; others continue them.
PIECES = WordPieces(np.arange(100) % 10 == 0, np.zeros(100, dtype=bool))


def words_of(count: int) -> list[np.ndarray]:
    return [np.array([number]) for number in range(1, count + 1)]


def flat(words: list[np.ndarray]) -> list[int]:
    return np.concatenate(words).tolist() if words else []


def test_words_are_kept_whole() -> None:
    words = PIECES.split(np.array([10, 11, 12, 20, 30, 31]))
    assert [word.tolist() for word in words] == [[10, 11, 12], [20], [30, 31]]
    # A sentence may begin in the middle of a word.
    assert [word.tolist() for word in PIECES.split(np.array([11, 20]))] == [[11], [20]]


@settings(deadline=None)
@given(st.integers(0, 30), st.floats(0, 6), st.integers(0, 2**31))
def test_shuffle_moves_words_less_than_the_distance(count: int, distance: float, seed: int) -> None:
    shuffled = flat(local_shuffle(words_of(count), distance, np.random.default_rng(seed)))
    assert sorted(shuffled) == list(range(1, count + 1))
    for place, word in enumerate(shuffled):
        assert abs(word - 1 - place) < max(distance, 1)


def test_shuffle_of_distance_3_moves_words() -> None:
    words = flat(local_shuffle(words_of(50), 3, np.random.default_rng(1)))
    assert words != list(range(1, 51))


def test_rates_are_met_within_five_deviations() -> None:
    count, rate = 20_000, 0.15
    bound = 5 * (rate * (1 - rate) / count) ** 0.5
    rng = np.random.default_rng(2)
    kept = len(delete_words(words_of(count), rate, rng))
    assert abs((count - kept) / count - rate) < bound
    masked = flat(mask_words(words_of(count), rate, MASK, rng)).count(MASK)
    assert abs(masked / count - rate) < bound


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5])
def test_infilling_hides_its_share(rate: float) -> None:
    noised = flat(infill_spans(words_of(1000), rate, 3.0, MASK, np.random.default_rng(3)))
    hidden = 1000 - sum(word != MASK for word in noised)
    assert hidden == round(rate * 1000)
    spans = noised.count(MASK)
    # Mean length 3, counting the spans of length 0: within a quarter.
    assert 0.75 * 3 < hidden / spans < 1.25 * 3


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(1, 99), max_size=25),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.integers(0, 2**31),
)
def test_noise_never_lengthens_nor_empties(
    tokens: list[int], delete: float, infill: float, mask: float, seed: int
) -> None:
    noise = Noise(delete=delete, infill=infill, mask=mask)
    array = np.array(tokens, dtype=np.int64)
    noised = noise.apply(array, PIECES, MASK, np.random.default_rng(seed))
    assert len(noised) <= len(tokens)
    assert (len(noised) > 0) == (len(tokens) > 0)
    assert set(noised.tolist()) <= {*tokens, MASK}
    again = noise.apply(array, PIECES, MASK, np.random.default_rng(seed))
    assert noised.tolist() == again.tolist()


def test_the_kinds_of_noise_in_their_order() -> None:
    noise = Noise(shuffle_distance=3, delete=0.2, infill=0.2, span_length=2, mask=0.2)
    tokens = np.arange(1, 60)
    noised = noise.apply(tokens, PIECES, MASK, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    words = delete_words(local_shuffle(PIECES.split(tokens), 3, rng), 0.2, rng)
    words = mask_words(infill_spans(words, 0.2, 2, MASK, rng), 0.2, MASK, rng)
    assert noised.tolist() == flat(words)


def test_scaled_noise() -> None:
    noise = Noise(shuffle_distance=4, delete=0.1, infill=0.2, span_length=3, mask=0.4)
    assert noise.scaled(0.5) == Noise(2, 0.05, 0.1, 3, 0.2)


def test_no_noise_is_the_identity() -> None:
    silent = Noise(shuffle_distance=0, delete=0, infill=0, mask=0)
    tokens = np.arange(1, 40)
    assert silent.apply(tokens, PIECES, MASK, np.random.default_rng(0)).tolist() == tokens.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": 1.0}, "--dae-mask 1.0"),
        ({"delete": -0.1}, "--dae-delete -0.1"),
        ({"infill": 2}, "--dae-infill 2"),
        ({"shuffle_distance": -1}, "--dae-shuffle-distance -1"),
        ({"shuffle_distance": np.nan}, "--dae-shuffle-distance nan"),
        ({"span_length": 0}, "--dae-span-length 0"),
        ({"span_length": np.inf}, "--dae-span-length inf"),
    ],
)
def test_bad_rates_name_their_flag(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Noise(**options)

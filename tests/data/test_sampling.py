"""Temperature sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcode_plugin.data.sampling import Temperature, draw_rows, split_total, temperature_ratios


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.8, 0.2]), (2.0, [2 / 3, 1 / 3]), (float("inf"), [0.5, 0.5])],
)
def test_ratios(temperature: float, expected: list[float]) -> None:
    assert temperature_ratios([400, 100], temperature) == pytest.approx(expected)


def test_a_temperature_that_changes() -> None:
    rising = Temperature(1.0, 5.0, epochs=5)
    assert [rising.at(epoch) for epoch in (1, 2, 3, 5, 6, 99)] == [1, 2, 3, 5, 5, 5]
    assert {Temperature(3.0).at(epoch) for epoch in (1, 9)} == {3}


def test_ten_thousand_draws_follow_the_ratios() -> None:
    sizes = [90_000, 9_000, 900, 100]
    ratios = temperature_ratios(sizes, 5.0)
    counts = split_total(10_000, ratios)
    assert counts.sum() == 10_000
    # Whole numbers: each count is off by less than one draw.
    assert np.abs(counts - 10_000 * ratios).max() < 1


@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 1000), min_size=1, max_size=20),
    st.floats(0.5, 100),
)
def test_counts_sum_to_the_total(total: int, sizes: list[int], temperature: float) -> None:
    counts = split_total(total, temperature_ratios(sizes, temperature))
    assert counts.sum() == total
    assert (counts >= 0).all()


@given(st.integers(1, 50), st.integers(0, 300), st.integers(0, 2**31))
def test_rows_are_drawn_evenly(size: int, count: int, seed: int) -> None:
    rows = draw_rows(size, count, np.random.default_rng(seed))
    assert len(rows) == count
    times = np.bincount(rows, minlength=size)
    assert set(times.tolist()) <= {count // size, -(-count // size)}


def test_the_rest_is_random() -> None:
    first = draw_rows(100, 50, np.random.default_rng(1))
    second = draw_rows(100, 50, np.random.default_rng(2))
    assert sorted(first) != sorted(second)

"""Factors that make summed losses means, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from distributed import run_ranks

from zcode_plugin.parallel.normalizers import normalizers

BATCHES = (
    {"mt": {"ntokens": 30}, "mlm": {"ntokens": 6}, "electra": {"ntokens": 4, "nplaces": 20}},
    {"mt": {"ntokens": 10}, "mlm": {"ntokens": 2}, "electra": {"ntokens": 8, "nplaces": 60}},
)
# Of both: 40, 8, 12 targets, 60 in all, and 80 places.
MEANS = {"mt": 1.0, "mlm": 40 / 8, "electra": 40 / 12, "electra.false": 40 / 80}
BY_TOKENS = {
    "mt": 40 / 60, "mlm": 40 / 60, "electra": 40 / 60, "electra.false": 40 / 80 * 12 / 60,
}  # fmt: skip


def _factors(rank: int, by_tokens: bool) -> dict[str, float]:
    return normalizers(BATCHES[rank], by_tokens=by_tokens)


@pytest.mark.parametrize(("by_tokens", "expected"), [(False, MEANS), (True, BY_TOKENS)])
def test_counts_are_those_of_all_ranks(by_tokens: bool, expected: dict[str, float]) -> None:
    for factors in run_ranks(_factors, 2, by_tokens):
        assert factors == pytest.approx(expected)


def _without_the_second(rank: int) -> dict[str, float]:
    return normalizers(BATCHES[rank], ignore=rank == 1)


def test_a_batch_that_stands_in_for_another_does_not_count() -> None:
    for factors in run_ranks(_without_the_second, 2):
        assert factors == pytest.approx({
            "mt": 1, "mlm": 30 / 6, "electra": 30 / 4, "electra.false": 30 / 20
        })  # fmt: skip


@pytest.mark.parametrize(("mt", "mlm", "expected"), [(40, 0, (1, 0)), (0, 40, (0, 0))])
def test_an_objective_without_targets(mt: int, mlm: int, expected: tuple[int, int]) -> None:
    """Its own factor is 0; and where it is the first, the trainer divides by 0 targets of it."""
    factors = normalizers({"mt": {"ntokens": mt}, "mlm": {"ntokens": mlm}})
    assert factors == dict(zip(("mt", "mlm"), expected, strict=True))


def test_the_loss_by_tokens_is_a_mean_over_all_targets() -> None:
    sample: dict[str, Any] = {"mt": {"ntokens": 30}, "dae": {"ntokens": 10}}
    sums = {"mt": 60.0, "dae": 50.0}
    factors = normalizers(sample, by_tokens=True)
    # The trainer divides by the targets of the first objective.
    loss = sum(factors[name] * sums[name] for name in sums) / 30
    assert loss == pytest.approx((60 + 50) / 40)

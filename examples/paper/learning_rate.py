#!/usr/bin/env python3
"""The learning rate: half, once and twice that of all studies, for dense and MoE models.

Whether a model gains from experts, or from a step size that happens to suit it, is seen where each
has the one that suits it best: the dense model, the MoE model and the one whose gate draws experts
at random, of the main table; one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import quality
from records import Measured, Records, origins
from results import Report, Table
from study import DENSE, MOE, RANDOM, RATE, Scale, main_with_records
from trainings import Run

KINDS = {
    "dense": ("dense", DENSE),
    "MoE": ("moe", MOE),
    "random gate": ("random-gate", RANDOM),
}
RATES = ("0.001", RATE, "0.004")


def body(records: Records, scale: Scale) -> Report:
    found = records.measure({
        (kind, rate): [of_rate(scale, name, options, rate)]
        for kind, (name, options) in KINDS.items()
        for rate in RATES
    }, [("dense", RATE)])  # fmt: skip
    rows = [
        [kind, rate, one.curve[-1].loss, *quality.scores(one.results)]
        for (kind, rate), [one] in found.items()
    ]
    columns = ["model", "learning rate", "final loss", *quality.COLUMNS]
    best = best_rates(found)
    paths = {kind: [found[kind, rate][0].path] for kind, rate in best.items()}
    tests = quality.significance(paths, [1], "dense")
    return Report(
        seeds=[1],
        tables=[
            Table("learning_rate", "Validation loss, BLEU and chrF++", columns, rows),
            quality.significance_table("learning_rate-significance", tests, "dense"),
        ],
        findings=[
            f"Best learning rates: {', '.join(f'{kind} {rate}' for kind, rate in best.items())}.",
            *(quality.finding(tests, kind, "dense") for kind in paths if kind != "dense"),
        ],
        details={
            "updates": scale.updates,
            **origins(found),
            "signatures": quality.signatures(next(iter(found.values()))[0].results),
        },
    )


def best_rates(found: Mapping[tuple[str, str], Sequence[Measured]]) -> dict[str, str]:
    """The one with the most BLEU, of each kind of model that there is."""

    def bleu(key: tuple[str, str]) -> float:
        return quality.mean_bleu(found[key][0].results)

    by_kind = {kind: [key for key in found if key[0] == kind] for kind in KINDS}
    return {kind: max(keys, key=bleu)[1] for kind, keys in by_kind.items() if keys}


def of_rate(scale: Scale, name: str, options: tuple[str, ...], rate: str) -> Run:
    """The main table's run, where the rate is the same."""
    if rate == RATE:
        return scale.run(name, options)
    return scale.run(f"{name}-{rate}", (*options, "--lr", rate))


if __name__ == "__main__":
    main_with_records("learning_rate", __doc__, body)

#!/usr/bin/env python3
"""The learning rate: half, once and twice that of all studies, for dense and MoE models.

Whether a model gains from experts, or from a step size that happens to suit it, is seen where each
has the one that suits it best: the dense model, the MoE model and the one whose gate draws experts
at random, of the main table; one seed.
"""

from __future__ import annotations

import quality
from results import Report, Table
from study import DENSE, MOE, RANDOM, RATE, Scale, main
from trainings import Run, Study

KINDS = {
    "dense": ("dense", DENSE),
    "MoE": ("moe", MOE),
    "random gate": ("random-gate", RANDOM),
}
RATES = ("0.001", RATE, "0.004")


def body(study: Study, scale: Scale) -> Report:
    runs = {
        (kind, rate): of_rate(scale, name, options, rate)
        for kind, (name, options) in KINDS.items()
        for rate in RATES
    }
    study.train(runs.values())
    evaluated = dict(zip(runs, study.evaluate([*runs.values()]), strict=True))
    rows = [
        [kind, rate, study.curve(run)[-1].loss, *quality.scores(evaluated[kind, rate])]
        for (kind, rate), run in runs.items()
    ]
    columns = ["model", "learning rate", "final loss", *quality.COLUMNS]
    best = {
        kind: max(RATES, key=lambda rate: quality.scores(evaluated[kind, rate])[2])
        for kind in KINDS
    }
    paths = {kind: [study.results(runs[kind, rate])] for kind, rate in best.items()}
    tests = quality.significance(paths, [1], "dense")
    return Report(
        seeds=[1],
        tables=[
            Table("learning_rate", "Validation loss, BLEU and chrF++", columns, rows),
            quality.significance_table("learning_rate-significance", tests, "dense"),
        ],
        findings=[
            "Best learning rates: "
            + ", ".join(f"{kind} {rate}" for kind, rate in best.items())
            + ".",
            *(quality.finding(tests, kind, "dense") for kind in [*KINDS][1:]),
        ],
        details={
            "updates": scale.updates,
            "signatures": quality.signatures(evaluated["dense", RATE]),
        },
    )


def of_rate(scale: Scale, name: str, options: tuple[str, ...], rate: str) -> Run:
    """The main table's run, where the rate is the same."""
    if rate == RATE:
        return scale.run(name, options)
    return scale.run(f"{name}-{rate}", (*options, "--lr", rate))


if __name__ == "__main__":
    main("learning_rate", __doc__, body)

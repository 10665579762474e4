#!/usr/bin/env python3
"""Deep encoder and shallow decoder: 4 + 2 layers against 3 + 3.

A decoder's layer runs once for every token that is written, an encoder's once for a sentence, so
layers that move from the decoder to the encoder make translation faster. Dense and MoE models of
both shapes, trained alike, one seed; every other layer of the encoder has experts, so there are 2
of them in 4 + 2 layers and 1 in 3 + 3; p is of sacreBLEU's paired bootstrap, between the shapes of
a kind and between the kinds of a shape. Tokens per second are those of fairseq-generate on one
thread, medians of rounds that alternate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import decoding
import quality
from results import Report, Table
from study import DENSE, MOE, Scale, main
from trainings import Run, Study

from zcode_plugin.data.pairs import Pair

DEEP, EVEN = "4 + 2", "3 + 3"
KINDS = {"dense": DENSE, "MoE": MOE}


class Comparison(NamedTuple):
    """Paired tests of one model against another.

    Attributes:
        what: both are.
        table: name of the table.
        baseline, other: what differs.
        tests: of all sentences.
    """

    what: str
    table: str
    baseline: str
    other: str
    tests: list[quality.Test]


def body(study: Study, scale: Scale) -> Report:
    layers = ("--encoder-layers", "3", "--decoder-layers", "3")
    runs = {("dense", DEEP): scale.dense(), ("MoE", DEEP): scale.moe()}
    runs |= {
        (kind, EVEN): scale.run(f"{kind.lower()}-3-3", (*options, *layers))
        for kind, options in KINDS.items()
    }
    study.train(runs.values())
    evaluated = dict(zip(runs, study.evaluate([*runs.values()]), strict=True))
    compared = comparisons(study, runs)
    settings = decoding.settings(scale)
    speed = decoding.speeds(
        study,
        decoding.Measurements(study.folder / "depth.json", [run.options for run in runs.values()]),
        {", ".join(key): study.checkpoint(run) for key, run in runs.items()},
        [Pair(*pair) for pair in scale.pick((("de", "en"), ("en", "de")), (("cs", "en"),))],
        rounds=scale.pick(3, 1),
        settings=settings,
    )
    rows = [
        [kind, shape, study.parameters(run), study.curve(run)[-1].loss,
         *quality.scores(evaluated[kind, shape]),
         *(speed[f"{kind}, {shape}", setting] for setting in settings)]
        for (kind, shape), run in runs.items()
    ]  # fmt: skip
    columns = ["model", "layers", "parameters", "final loss", *quality.COLUMNS,
               *(f"tokens/s, {setting}" for setting in settings)]  # fmt: skip
    ratios = [
        speed[f"{kind}, {DEEP}", setting] / speed[f"{kind}, {EVEN}", setting]
        for kind in KINDS
        for setting in settings
    ]
    return Report(
        seeds=[1],
        tables=[
            Table("depth", "Quality, and speed of translation", columns, rows),
            *(quality.significance_table(one.table, one.tests, one.baseline) for one in compared),
        ],
        findings=[
            f"4 + 2 layers translate {min(ratios):.2f} to {max(ratios):.2f} times as fast.",
            *(
                f"{one.what}: {quality.finding(one.tests, one.other, one.baseline)}"
                for one in compared
            ),
        ],
        details={"updates": scale.updates},
    )


def comparisons(study: Study, runs: Mapping[tuple[str, str], Run]) -> list[Comparison]:
    """The shapes of each kind, and the kinds of each shape."""

    def compare(what: str, table: str, contestants: Mapping[str, Run]) -> Comparison:
        baseline, other = contestants
        paths = {name: [study.results(run)] for name, run in contestants.items()}
        return Comparison(what, table, baseline, other, quality.significance(paths, [1], baseline))

    shapes = (DEEP, EVEN)
    return [
        *(
            compare(kind, f"depth-significance-{kind.lower()}", {s: runs[kind, s] for s in shapes})
            for kind in KINDS
        ),
        *(
            compare(
                f"{shape} layers",
                f"depth-experts-{shape[0]}{shape[-1]}",
                {kind: runs[kind, shape] for kind in KINDS},
            )
            for shape in shapes
        ),
    ]


if __name__ == "__main__":
    main("depth", __doc__, body)

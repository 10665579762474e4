#!/usr/bin/env python3
"""Deep encoder and shallow decoder: 4 + 2 layers against 3 + 3.

A decoder's layer runs once for every token that is written, an encoder's once for a sentence, so
layers that move from the decoder to the encoder make translation faster. Dense and MoE models of
both shapes, trained alike, one seed; p is of sacreBLEU's paired bootstrap against 4 + 2 layers.
Tokens per second are those of fairseq-generate on one thread, medians of rounds that alternate.
"""

from __future__ import annotations

import decoding
import quality
from results import Report, Table
from study import DENSE, MOE, Scale, main
from trainings import Study

from zcode_plugin.cli.evaluation.generation import Direction

EVEN = ("--encoder-layers", "3", "--decoder-layers", "3")


def body(study: Study, scale: Scale) -> Report:
    runs = {
        "dense, 4 + 2": scale.dense(),
        "dense, 3 + 3": scale.run("dense-3-3", (*DENSE, *EVEN)),
        "MoE, 4 + 2": scale.moe(),
        "MoE, 3 + 3": scale.run("moe-3-3", (*MOE, *EVEN)),
    }
    study.train(runs.values())
    evaluated = {name: study.evaluate([run])[0] for name, run in runs.items()}
    names = list(runs)
    tests = [
        quality.significance({n: [study.results(runs[n])] for n in (deep, even)}, [1], deep)
        for deep, even in (names[:2], names[2:])
    ]
    speeds = decoding.speeds(
        study,
        decoding.Measurements(study.folder / "depth.json"),
        {name: study.checkpoint(run) for name, run in runs.items()},
        [Direction(*pair) for pair in scale.pick((("de", "en"), ("en", "de")), (("cs", "en"),))],
        rounds=scale.pick(3, 1),
        settings=scale.pick(decoding.SETTINGS, decoding.SETTINGS[-1:]),
    )
    settings = list(dict.fromkeys(setting for _, setting in speeds))
    rows = [
        [name, study.parameters(run), study.curve(run)[-1].loss,
         *quality.scores(evaluated[name]), *(speeds[name, setting] for setting in settings)]
        for name, run in runs.items()
    ]  # fmt: skip
    columns = ["model, layers", "parameters", "final loss", *quality.COLUMNS,
               *(f"tokens/s, {setting}" for setting in settings)]  # fmt: skip
    ratios = [
        speeds[deep, setting] / speeds[even, setting]
        for deep, even in (names[:2], names[2:])
        for setting in settings
    ]
    return Report(
        seeds=[1],
        tables=[
            Table("depth", "Quality, and speed of translation", columns, rows),
            *(quality.significance_table(f"depth-significance-{kind}", one, deep)
              for kind, one, deep in zip(("dense", "moe"), tests, names[::2], strict=True)),
        ],
        findings=[
            f"4 + 2 layers translate {min(ratios):.2f} to {max(ratios):.2f} times as fast.",
            *(quality.finding(one, even, deep)
              for one, deep, even in zip(tests, names[::2], names[1::2], strict=True)),
        ],
        details={"updates": scale.updates},
    )  # fmt: skip


if __name__ == "__main__":
    main("depth", __doc__, body)

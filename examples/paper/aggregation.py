#!/usr/bin/env python3
"""Aggregation of experts (AoE) against other ways to 8 experts.

A model with 4 experts is trained a little (trunk) and goes on twice, with the data in different
orders (a, b). `zcode aggregate` makes one with 8 experts of the two, whose gate is then re-fitted
alone, and which trains on. Beside it: the same without re-fitting, the same with every expert of
`a` twice, `a` itself for as many updates, and the model with 8 experts from scratch. Losses are
plotted over all updates that went into a model, those of both parents included. The learning rate
of every stage warms up anew, for 100 updates, and ends at 0. One seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from results import Report, Table
from study import GATE, MOE, SHAPE, Scale, main
from trainings import Run, Study

from zcode_plugin.reporting.plots import Chart, Series

FOUR = (*SHAPE, *GATE, "--moe-expert-count", "4")
# The rate at which parents and their children go on needs no long warm-up.
ON = ("--warmup-updates", "100")
Losses = list[tuple[int, float]]


class Lengths(NamedTuple):
    """Updates of each stage."""

    trunk: int = 400
    parent: int = 400
    refit: int = 100
    on: int = 300

    @property
    def merged(self) -> int:
        """Of a model that was made of both parents."""
        return self.trunk + 2 * self.parent


def body(study: Study, scale: Scale) -> Report:
    n = scale.pick(Lengths(), Lengths(8, 8, 4, 4))
    trunk = scale.run("aoe-trunk", FOUR, updates=n.trunk)
    study.train([trunk])
    parents = {
        name: going_on(study, scale, f"aoe-{name}", study.checkpoint(trunk), n.parent, seed)
        for name, seed in (("a", 2), ("b", 3))
    }
    study.train(parents.values())
    a, b = (study.checkpoint(run) for run in parents.values())
    joined, doubled = aggregate(study, "joined", a, b), aggregate(study, "doubled", a, a)
    fitted = going_on(study, scale, "aoe-fitted", joined, n.refit, 4, "--freeze-except", "gate")
    later = {
        "joined": going_on(study, scale, "aoe-joined-on", joined, n.refit + n.on, 4),
        "doubled": going_on(study, scale, "aoe-doubled-on", doubled, n.refit + n.on, 4),
        "a": going_on(study, scale, "aoe-a-on", a, n.refit + n.on, 4),
    }
    scratch = scale.run("aoe-scratch", MOE, updates=n.merged + n.refit + n.on)
    study.train([fitted, *later.values(), scratch])
    fitted_on = going_on(study, scale, "aoe-fitted-on", study.checkpoint(fitted), n.on, 5)
    starts = {
        # One update that changes nothing: the loss of the checkpoint as it is.
        name: going_on(study, scale, f"aoe-{name}-start", path, 1, 4, "--lr", "0")
        for name, path in (("joined", joined), ("doubled", doubled), ("a", a))
    }
    study.train([fitted_on, *starts.values()])
    first = {name: study.curve(run)[-1].loss for name, run in starts.items()}
    single = n.trunk + n.parent
    found: dict[str, Losses] = {
        "8 experts from scratch": losses(study, scratch),
        "a and b joined": [
            (n.merged, first["joined"]), *losses(study, later["joined"], n.merged)
        ],
        "a and b joined, gate re-fitted": [
            (n.merged, first["joined"]), *losses(study, fitted, n.merged),
            *losses(study, fitted_on, n.merged + n.refit),
        ],
        "a with each expert twice": [
            (single, first["doubled"]), *losses(study, later["doubled"], single)
        ],
        "a, 4 experts": [(single, first["a"]), *losses(study, later["a"], single)],
        "b, 4 experts (parent)": losses(study, parents["b"], n.trunk),
    }  # fmt: skip
    return report(found, n)


def going_on(
    study: Study, scale: Scale, name: str, start: Path, updates: int, seed: int, *options: str
) -> Run:
    """A run that starts from the weights of a checkpoint."""
    line = (*SHAPE, *GATE, *ON, "--finetune-from-model", str(start), *options)
    return scale.run(name, line, seed=seed, updates=updates)


def aggregate(study: Study, name: str, one: Path, two: Path) -> Path:
    """The experts of two checkpoints as one."""
    path = study.folder / f"aoe-{name}.pt"
    if not path.exists():
        study.zcode("aggregate", str(one), str(two), "--out", str(path))
    return path


def losses(study: Study, run: Run, before: int = 0) -> Losses:
    """Updates that went into the model, and the validation loss."""
    return [(before + point.updates, point.loss) for point in study.curve(run)]


def report(found: dict[str, Losses], n: Lengths) -> Report:
    columns = ["model", "updates at first", "loss", "updates at last", "loss at last"]
    rows = [[name, *points[0], *points[-1]] for name, points in found.items()]
    values = [loss for points in found.values() for _, loss in points]
    chart = Chart(
        "aggregation", "Aggregation of experts",
        "updates that went into the model (of both parents, where it has two)",
        "validation loss (bits per target)",
        [Series(name, [x for x, _ in points], [y for _, y in points], number, number, sparse=True)
         for number, (name, points) in enumerate(found.items())],
        y_range=(min(values) - 0.1, sorted(values)[round(0.8 * len(values))]),
    )  # fmt: skip
    scratch, joined, fitted, doubled, alone = (
        found[name]
        for name in ("8 experts from scratch", "a and b joined", "a and b joined, gate re-fitted",
                     "a with each expert twice", "a, 4 experts")
    )  # fmt: skip
    findings = [
        f"At once, the joined model's loss is {joined[0][1] - alone[0][1]:+.3f} bits from that of "
        f"its parent a; {n.refit + n.on} updates later {joined[-1][1] - alone[-1][1]:+.3f} from a "
        f"that went on as long, {fitted[-1][1] - alone[-1][1]:+.3f} with the gate re-fitted first, "
        f"and {doubled[-1][1] - alone[-1][1]:+.3f} for a with each expert twice.",
        f"8 experts from scratch are {scratch[-1][1] - joined[-1][1]:+.3f} bits from the joined "
        f"model, after {scratch[-1][0]:,} updates; into that went {joined[-1][0]:,}, into a "
        f"{alone[-1][0]:,}.",
    ]
    table = Table("aggregation", "Validation loss, bits per target", columns, rows)
    return Report([1], [table], [chart], findings, {"lengths": n._asdict()})


if __name__ == "__main__":
    main("aggregation", __doc__, body)

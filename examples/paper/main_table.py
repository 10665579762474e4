#!/usr/bin/env python3
"""The paper's main table in small: multilingual dense and MoE models, and bilingual ones.

A dense model, its MoE twin of equal compute per token, and the twin with a gate that chooses at
random see the same batches in as many updates, with three seeds each; of bilingual models there is
one for each language, both directions, with a quarter of the updates: in all, twice the compute of
the dense model. Significance is of sacreBLEU's paired bootstrap, MoE against dense of equal seed,
over the sentences of all directions.
"""

from __future__ import annotations

import argparse
from itertools import chain
from statistics import fmean, stdev
from typing import Any

import results
from study import DENSE, MOE, PAIRS, both_ways, checks, main
from trainings import Point, Run, Study

from zcode_plugin.cli.evaluation import comparison
from zcode_plugin.cli.evaluation.generation import Direction

# BLEU on the paper's own test set of 50 languages.
PAPER = {"dense": (35.16, 30.36), "bilingual": (35.70, 30.40), "moe": (42.09, 32.22)}
SYSTEMS = {"dense": DENSE, "moe": MOE, "random gate": (*MOE, "--moe-gate", "random")}
GROUPS = ("X->en", "en->X")


def body(study: Study, args: argparse.Namespace) -> None:
    updates, seeds, pairs = (40, (1,), PAIRS[:1]) if args.quick else (3000, (1, 2, 3), PAIRS)
    every = checks(updates, 4 if args.quick else 15)
    systems = {
        name: [
            Run(
                f"{name.replace(' ', '-')}-{seed}",
                updates,
                (*every, *options, "--seed", str(seed), "--lang-pairs", both_ways(pairs)),
            )
            for seed in seeds
        ]
        for name, options in SYSTEMS.items()
    }
    bilingual = {
        pair: Run(
            f"bilingual-{pair}",
            updates // 4,
            (*every, *DENSE, "--seed", "1", "--lang-pairs", both_ways([pair])),
        )
        for pair in pairs
    }
    by_seed = zip(*systems.values(), strict=True)
    study.train([*chain(*by_seed), *bilingual.values()])
    evaluated = {
        name: study.evaluate(runs, "--pairs", both_ways(pairs)) for name, runs in systems.items()
    }
    alone = [study.evaluate([run], "--pairs", both_ways([pair])) for pair, run in bilingual.items()]
    evaluated["bilingual"] = [joined([*chain(*alone)])]
    curves = {name: [study.curve(run) for run in runs] for name, runs in systems.items()}
    results.write(
        args.out,
        "main_table",
        quick=args.quick,
        seeds=seeds,
        columns=["system", "seeds", *COLUMNS, "deviation of BLEU", "paper, X->en", "paper, en->X"],
        rows=[row(name, several) for name, several in evaluated.items()],
        charts=results.loss_charts("main_table", "Dense, MoE and random gate", curves),
        updates=updates,
        directions=both_ways(pairs).split(","),
        signatures=signatures(evaluated["dense"][0]),
        significance=significance(study, systems),
        reaching_dense=reaching(curves),
    )


COLUMNS = [f"{metric} {group}" for metric in ("BLEU", "chrF++") for group in (*GROUPS, "all")]


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Results of several models as those of one."""
    return {"directions": {key: one for part in parts for key, one in part["directions"].items()}}


def means(result: dict[str, Any], metric: str) -> list[float]:
    """Unweighted means over the directions into English, out of it, and all."""
    found = {Direction(*key.split("-")): one[metric] for key, one in result["directions"].items()}
    into = [score for direction, score in found.items() if direction.tgt == "en"]
    out = [score for direction, score in found.items() if direction.src == "en"]
    return [fmean(into), fmean(out), fmean(found.values())]


def row(name: str, several: list[dict[str, Any]]) -> list[object]:
    """A line of the table: means over seeds, and how far the mean BLEU of seeds differs."""
    bleu = [means(one, "bleu") for one in several]
    chrf = [means(one, "chrf") for one in several]
    scores = [fmean(column) for column in (*zip(*bleu, strict=True), *zip(*chrf, strict=True))]
    spread = stdev([one[2] for one in bleu]) if len(bleu) > 1 else None
    return [name, len(several), *scores, spread, *PAPER.get(name, (None, None))]


def signatures(result: dict[str, Any]) -> list[str]:
    """Of BLEU and chrF++, each once."""
    entries = result["directions"].values()
    fields = ("bleu_signature", "chrf_signature")
    return list(dict.fromkeys(entry[field] for field in fields for entry in entries))


def significance(study: Study, systems: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """The others against dense of the same seed, over all sentences: scores and p."""
    tests = []
    for number, runs in enumerate(zip(*systems.values(), strict=True)):
        paths = [study.results(run) for run in runs]
        read = [comparison.read_system(*one) for one in zip(paths, systems, strict=True)]
        directions = comparison.common_directions(read, paths)
        made = comparison.compare(read, directions, "bs", 1000)
        for metric in comparison.TESTED:
            [dense, *others] = made.outcomes[metric][comparison.ALL]
            for name, outcome in zip(made.systems[1:], others, strict=True):
                tests.append(
                    {
                        "seed": number + 1, "metric": metric, "system": name, "p": outcome.p,
                        "score": outcome.score, "dense": dense.score,
                    }
                )  # fmt: skip
    return tests


def reaching(curves: dict[str, list[list[Point]]]) -> dict[str, Any]:
    """When each system, seed by seed, has the dense model's final loss; None: not at all."""
    goals = [curve[-1] for curve in curves["dense"]]
    found: dict[str, Any] = {"dense": [vars(goal) for goal in goals]}
    for name in (name for name in curves if name != "dense"):
        found[name] = [
            next((vars(point) for point in curve if point.loss <= goal.loss), None)
            for curve, goal in zip(curves[name], goals, strict=True)
        ]
    return found


if __name__ == "__main__":
    main("main_table", __doc__, body)

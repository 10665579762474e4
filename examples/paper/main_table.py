#!/usr/bin/env python3
"""The paper's main table: multilingual dense and MoE models, and bilingual ones.

A dense model and its MoE twin of equal compute per token see the same batches in as many updates;
every other layer of the encoder has experts. The same with a gate that draws experts at random (a
hash of the token chooses when it translates) says what experts are worth that nothing is learnt
about. Three seeds each, as
far as they are trained. Two more MoE models, one seed each: one with experts in the decoder, too,
as in the paper, and one whose gate is that hash from the start. Of bilingual models there is one
for each language, both directions, with a quarter of the updates: in all twice the compute of the
dense model. Scores are of 200 sentences a direction that no training has seen, unweighted means
over directions and seeds. p is of sacreBLEU's paired bootstrap against the dense model of equal
seed, over the sentences of all directions; with the seed "all" over those of all seeds together,
which says nothing of further seeds: the deviation does. Learning rates fall to 0 at the same update
for all: a model that was to end at the dense model's loss could be there earlier than the table of
updates says. The paper's columns are its own BLEU, of 50 languages and models of up to 10 billion
parameters: not the same test, but the same table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import curves
import quality
from records import Measured, Records, origins
from results import Report, Table, loss_charts
from study import DENSE, EIGHT, MOE, RANDOM, Scale, both_ways, main_with_records
from trainings import Run

# BLEU on the paper's own test set: X->en, en->X, mean.
PAPER = {
    "bilingual": (35.70, 30.40, 33.05), "dense": (35.16, 30.36, 32.76), "MoE": (42.09, 32.22, 37.15)
}  # fmt: skip


def body(records: Records, scale: Scale) -> Report:
    systems = multilingual(scale)
    twins = ("dense", "MoE")
    records.make({name: systems[name] for name in twins})  # first, and side by side
    bilingual = records.measure({"bilingual": of_pairs(scale)}).get("bilingual", [])
    measured = records.measure(systems, twins)
    evaluated = {name: [one.results for one in several] for name, several in measured.items()}
    if len(bilingual) == len(scale.pairs):
        joined = quality.joined([one.results for one in bilingual])
        evaluated = {"bilingual": [joined], **evaluated}
    seeds = scale.seeds[: len(measured["dense"])]
    tests = compared(measured, seeds, "dense", list(measured))
    routing = compared(measured, seeds, "random gate", ["random gate", "MoE"])
    found = {name: [one.curve for one in several] for name, several in measured.items()}
    tables = [
        scores(evaluated),
        quality.significance_table("main_table-significance", tests, "dense"),
        effort(found),
        pieces(measured),
    ]
    findings = [quality.finding(tests, name, "dense") for name in [*measured][1:]]
    if routing:  # what it is worth to learn where to send tokens
        tables.insert(2, quality.significance_table("main_table-routing", routing, "random gate"))
        findings.append(quality.finding(routing, "MoE", "random gate"))
    return Report(
        seeds=seeds,
        tables=tables,
        charts=loss_charts("main_table", "Dense and MoE", found),
        findings=findings,
        details={
            "updates": scale.updates,
            **origins({**measured, "bilingual": bilingual}),
            "directions": sorted(evaluated["dense"][0]["directions"]),
            "signatures": quality.signatures(evaluated["dense"][0]),
        },
    )


def compared(
    measured: Mapping[str, Sequence[Measured]],
    seeds: Sequence[int],
    baseline: str,
    systems: Sequence[str],
) -> list[quality.Test]:
    """Tests of those of the systems that there are; none without the baseline."""
    paths = {name: [one.path for one in measured[name]] for name in systems if name in measured}
    return quality.significance(paths, seeds, baseline) if baseline in paths else []


def multilingual(scale: Scale) -> dict[str, list[Run]]:
    """Runs of each system, of the first seeds or of all."""
    return {
        "dense": [scale.dense(seed) for seed in scale.seeds],
        "MoE": [scale.moe(seed) for seed in scale.seeds],
        "random gate": [scale.run("random-gate", RANDOM, seed=seed) for seed in scale.seeds],
        "hash gate": [scale.run("hash-gate", (*EIGHT, "--moe-gate", "hash"))],
        "MoE, decoder too": [scale.run("moe-both", (*MOE, "--decoder-moe-freq", "2"))],
    }


def of_pairs(scale: Scale) -> list[Run]:
    """Of each language, both directions; short, because a pair has an eighth of the data."""
    updates = scale.updates // 4
    return [
        scale.run(f"bilingual-{pair}", DENSE, updates=updates, directions=both_ways([pair]))
        for pair in scale.pairs
    ]


def scores(evaluated: dict[str, list[quality.Results]]) -> Table:
    groups = [f"paper, {group}" for group in quality.GROUPS]
    rows = [
        [
            name, len(several), *quality.mean_scores(several),
            curves.deviation([*map(quality.mean_bleu, several)]),
            *PAPER.get(name, (None, None, None)),
        ]
        for name, several in evaluated.items()
    ]  # fmt: skip
    columns = ["system", "seeds", *quality.COLUMNS, "deviation of BLEU all", *groups]
    return Table("main_table", "BLEU and chrF++", columns, rows)


def effort(found: dict[str, curves.Curves]) -> Table:
    """What it takes to get to the dense model's final loss; with a schedule of its own, less."""
    dense = found["dense"]
    columns = [
        "system", "seeds", "final loss", "dense's, of these seeds",
        "times fewer updates to dense's", "times less time to it",
    ]  # fmt: skip
    rows = [
        [name, len(several), curves.final(several), curves.final(dense[: len(several)]),
         *curves.speedup(several, dense)]
        for name, several in found.items()
    ]  # fmt: skip
    return Table("main_table-effort", "Validation loss, of mean curves", columns, rows)


def pieces(measured: Mapping[str, Sequence[Measured]]) -> Table:
    """What models know of words to choose, and of how to finish them."""
    kinds = list(measured["dense"][0].pieces)
    rows = [
        [name, len(several), *(fmean(one.pieces[kind] for one in several) for kind in kinds)]
        for name, several in measured.items()
    ]
    columns = ["system", "seeds", *kinds]
    return Table("main_table-pieces", "Test loss, bits per piece of a word", columns, rows)


if __name__ == "__main__":
    main_with_records("main_table", __doc__, body)

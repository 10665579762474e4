#!/usr/bin/env python3
"""Translation with denoising, masked language modelling and ELECTRA beside it.

The smallest pair, Polish, is cut to 1,000 sentences; the monolingual text of all nine languages
stays whole, Polish too (it is the text that the parallel data are made of, without its
translation). The MoE model is trained on translation (mt) alone, and with objectives added, their
weights 1; each sees the same translation batches in as many updates, so those with more objectives
have more compute. p is of sacreBLEU's paired bootstrap against translation alone, equal seed.
"""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean

import quality
from curves import deviation
from results import Report, Table
from study import MOE, Scale, both_ways, main, prepare
from trainings import Run, Study

OBJECTIVES = ("mt", "mt,dae", "mt,dae,mlm", "mt,dae,electra")
CUT, SENTENCES = "pl", 1000


def body(study: Study, scale: Scale) -> Report:
    study = study.beside("multitask", cut_data(study))
    seeds = scale.pick((1, 2), (1,))
    alone = (f"{CUT}-en", f"en-{CUT}")
    pairs = (*scale.pairs, f"{CUT}-en") if scale.quick else scale.pairs
    systems = {
        objectives: [
            scale.run(
                objectives.replace(",", "-"),
                (*MOE, "--multitask", ",".join(f"{one}:1" for one in objectives.split(","))),
                seed=seed,
                updates=scale.pick(1800, 20),
                validations=4,
                directions=both_ways(pairs),
            )
            for seed in seeds
        ]
        for objectives in OBJECTIVES
    }
    study.train([run for several in zip(*systems.values(), strict=True) for run in several])
    evaluated = study.evaluate_all(systems)
    paths = study.results_of(systems)
    tests = quality.significance(paths, seeds, "mt", alone)
    rows = [row(name, several, study, systems[name]) for name, several in evaluated.items()]
    columns = ["objectives", "seeds", *quality.COLUMNS, "deviation of BLEU all",
               *(f"BLEU {direction}" for direction in alone), "minutes"]  # fmt: skip
    return Report(
        seeds=seeds,
        tables=[
            Table("multitask", "BLEU and chrF++, means over seeds", columns, rows),
            quality.significance_table("multitask-significance", tests, "mt"),
        ],
        findings=[quality.finding(tests, name, "mt") for name in OBJECTIVES[1:]],
        details={
            "updates": systems["mt"][0].updates,
            "sentences": SENTENCES,
            "signatures": quality.signatures(evaluated["mt"][0]),
        },
    )


def cut_data(study: Study) -> Path:
    """The corpus with a pair cut, binarised with the subwords of the whole."""
    whole = study.data.parent / "corpus" / "raw"
    raw, data = study.folder / "multitask" / "raw", study.folder / "multitask" / "data"
    raw.mkdir(parents=True, exist_ok=True)
    kept: list[int] | None = None
    for path in sorted(whole.glob("*.*")):
        if not path.is_file():
            continue
        text = path.read_bytes()
        if path.name.startswith("train.") and CUT in path.name.split(".")[1].split("-"):
            lines = text.splitlines(keepends=True)
            kept = kept or sorted(random.Random(1).sample(range(len(lines)), SENTENCES))
            text = b"".join(lines[number] for number in kept)
        (raw / path.name).write_bytes(text)
    model = str(study.data / "sentencepiece.model")
    prepare(raw, data, study.folder / "prepare.log", "--sentencepiece-model", model)
    return data


def row(name: str, several: list[quality.Results], study: Study, runs: list[Run]) -> list[object]:
    alone = [
        fmean(one["directions"][direction]["bleu"] for one in several)
        for direction in (f"{CUT}-en", f"en-{CUT}")
    ]
    minutes = fmean(study.curve(run)[-1].seconds / 60 for run in runs)
    spread = deviation([*map(quality.mean_bleu, several)])
    return [name, len(several), *quality.mean_scores(several), spread, *alone, minutes]


if __name__ == "__main__":
    main("multitask", __doc__, body)

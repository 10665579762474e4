#!/usr/bin/env python3
"""Fine-tuning on a task that looks like summarisation: a page's title from its first paragraphs.

In nine languages, a direction each, from a language to its titles, a symbol that the models have
never seen. Models of the main table, which only translate, are trained on: dense and MoE, three
seeds each, and for comparison a dense model from scratch. Pages are those of the corpus, divided
as there, so no model has seen a page of the test. p is of sacreBLEU's paired bootstrap against the
dense model of equal seed.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import curves
import quality
from results import Report, Table
from study import DENSE, GATE, SHAPE, Scale, main, prepare
from trainings import Run, Study


def body(study: Study, scale: Scale) -> Report:
    dense = [scale.dense(seed) for seed in scale.seeds]
    moe = [scale.moe(seed) for seed in scale.seeds]
    study.train([*dense, *moe])
    languages = ["en", *(pair.split("-")[0] for pair in scale.pairs)]
    titles = Study(study.folder / "titles", title_data(study), study.jobs)
    # Languages that the models know, then symbols of titles.
    known = (titles.data / "langs.txt").read_text().split()
    common = (
        "--langs", ",".join([*known, *(f"{one}title" for one in known)]), "--warmup-updates", "50"
    )  # fmt: skip

    def tuned(name: str, run: Run, options: tuple[str, ...]) -> Run:
        seed = int(run.name.rpartition("-")[2])
        start = ("--finetune-from-model", str(study.checkpoint(run)))
        return title_run(scale, name, languages, (*options, *common, *start), seed)

    systems = {
        "dense": [tuned("dense", run, DENSE) for run in dense],
        "MoE": [tuned("moe", run, (*SHAPE, *GATE)) for run in moe],
        "dense from scratch": [
            title_run(scale, "scratch", languages, (*DENSE, *common), seed) for seed in scale.seeds
        ],
    }
    titles.train([run for several in zip(*systems.values(), strict=True) for run in several])
    evaluated = {name: titles.evaluate(runs) for name, runs in systems.items()}
    paths = {name: [titles.results(run) for run in runs] for name, runs in systems.items()}
    tests = quality.significance(paths, scale.seeds, "dense")
    rows = [
        [name, len(runs), *(scores(evaluated[name])),
         fmean(min(point.loss for point in titles.curve(run)) for run in runs),
         curves.deviation([mean(one, "bleu") for one in evaluated[name]])]
        for name, runs in systems.items()
    ]  # fmt: skip
    columns = ["model", "seeds", "BLEU", "chrF++", "lowest validation loss", "deviation of BLEU"]
    return Report(
        seeds=scale.seeds,
        tables=[
            Table("finetuning", "Titles, means over languages and seeds", columns, rows),
            quality.significance_table("finetuning-significance", tests, "dense"),
        ],
        findings=[quality.finding(tests, name, "dense") for name in ("MoE", "dense from scratch")],
        details={"updates": systems["dense"][0].updates, "languages": languages,
                 "signatures": quality.signatures(evaluated["dense"][0])},
    )  # fmt: skip


def title_run(
    scale: Scale, name: str, languages: list[str], options: tuple[str, ...], seed: int
) -> Run:
    """A training on titles, all languages together."""
    directions = [f"{language}-{language}title" for language in languages]
    return scale.run(name, options, seed=seed, updates=scale.pick(400, 8), directions=directions)


def title_data(study: Study) -> Path:
    """Pages and their titles, binarised with the subwords of the corpus."""
    source = study.data.parent / "corpus" / "raw" / "titles"
    raw, data = study.folder / "titles" / "raw", study.folder / "titles" / "data"
    raw.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        split, language, kind = path.name.split(".")
        side = language if kind == "body" else f"{language}title"
        (raw / f"{split}.{language}-{language}title.{side}").write_bytes(path.read_bytes())
    model = str(study.data / "sentencepiece.model")
    prepare(raw, data, study.folder / "prepare.log", "--sentencepiece-model", model)
    return data


def mean(result: quality.Results, metric: str) -> float:
    return fmean(one[metric] for one in result["directions"].values())


def scores(several: list[quality.Results]) -> list[float]:
    return [fmean(mean(one, metric) for one in several) for metric in ("bleu", "chrf")]


if __name__ == "__main__":
    main("finetuning", __doc__, body)

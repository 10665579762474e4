#!/usr/bin/env python3
"""Fine-tuning on a task that looks like summarisation: a page's title from its first paragraphs.

In nine languages, a direction each, from a language to its titles, a symbol that the models have
never seen. Models of the main table, which only translate, are trained on: dense and MoE, three
seeds each, and for comparison a dense model from scratch. Pages are those of the corpus, divided
as there; a page is left out of training if its text or its title stands in valid or test, too. p is
of sacreBLEU's paired bootstrap against the dense model of equal seed.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import curves
import quality
from results import Report, Table
from study import DENSE, GATE, SHAPE, Scale, main, prepare
from trainings import Run, Study

WARM_UP = ("--warmup-updates", "50")


def body(study: Study, scale: Scale) -> Report:
    dense = [scale.dense(seed) for seed in scale.seeds]
    moe = [scale.moe(seed) for seed in scale.seeds]
    study.train([*dense, *moe])
    languages = ["en", *(pair.split("-")[0] for pair in scale.pairs)]
    titles = study.beside("titles", title_data(study))

    def tuned(name: str, run: Run, options: tuple[str, ...]) -> Run:
        seed = int(run.name.rpartition("-")[2])
        start = ("--finetune-from-model", str(study.checkpoint(run)))
        return title_run(scale, name, languages, (*options, *WARM_UP, *start), seed)

    systems = {
        "dense": [tuned("dense", run, DENSE) for run in dense],
        "MoE": [tuned("moe", run, (*SHAPE, *GATE)) for run in moe],
        "dense from scratch": [
            title_run(scale, "scratch", languages, (*DENSE, *WARM_UP), seed) for seed in scale.seeds
        ],
    }
    titles.train([run for several in zip(*systems.values(), strict=True) for run in several])
    evaluated = titles.evaluate_all(systems)
    paths = titles.results_of(systems)
    tests = quality.significance(paths, scale.seeds, "dense")
    rows = [
        [name, len(runs), *(scores(evaluated[name])),
         curves.final([titles.curve(run) for run in runs]),
         curves.deviation([mean(one, "bleu") for one in evaluated[name]])]
        for name, runs in systems.items()
    ]  # fmt: skip
    columns = ["model", "seeds", "BLEU", "chrF++", "final loss", "deviation of BLEU"]
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
    for language in sorted(path.name.split(".")[1] for path in source.glob("train.*.body")):
        for split, examples in divided(source, language).items():
            stem = raw / f"{split}.{language}-{language}title"
            for number, kind in enumerate((language, f"{language}title")):
                text = "".join(pair[number] for pair in examples)
                stem.with_name(f"{stem.name}.{kind}").write_text(text)
    model = str(study.data / "sentencepiece.model")
    prepare(raw, data, study.folder / "prepare.log", "--sentencepiece-model", model)
    return data


def divided(source: Path, language: str) -> dict[str, list[tuple[str, str]]]:
    """Lines (text, title) of each part; none of training has a text or a title of another part."""

    def read(split: str, kind: str) -> list[str]:
        return (source / f"{split}.{language}.{kind}").read_text().splitlines(keepends=True)

    parts = {
        split: list(zip(read(split, "body"), read(split, "title"), strict=True))
        for split in ("train", "valid", "test")
    }
    held_out = {line for split in ("valid", "test") for pair in parts[split] for line in pair}
    parts["train"] = [pair for pair in parts["train"] if held_out.isdisjoint(pair)]
    return parts


def mean(result: quality.Results, metric: str) -> float:
    return fmean(one[metric] for one in result["directions"].values())


def scores(several: list[quality.Results]) -> list[float]:
    return [fmean(mean(one, metric) for one in several) for metric in ("bleu", "chrf")]


if __name__ == "__main__":
    main("finetuning", __doc__, body)

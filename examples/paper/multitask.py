#!/usr/bin/env python3
"""Translation with denoising, masked language modelling and ELECTRA beside it.

The smallest pair, Polish, is cut to 1,000 sentences; the monolingual text of all nine languages
stays whole, Polish too (it is the text that the parallel data are made of, without its
translation). The MoE model is trained on translation (mt) alone, and with objectives added, their
weights 1; each sees the same translation batches in as many updates, so those with more objectives
have more compute. ELECTRA's discriminator has the weight 1, too. Of one seed are mt-twice,
translation alone in twice the updates, about the compute of mt,dae, and electra-50, with the
discriminator's weight in ELECTRA's own paper. p is of sacreBLEU's paired bootstrap against
translation alone, equal seed.
"""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean

import quality
from curves import deviation
from records import Measured, Records, origins
from results import Report, Table
from study import MOE, Scale, both_ways, main_with_records, prepare
from trainings import Run, Study

ELECTRA = ("--multitask", "mt:1,dae:1,electra:1", "--electra-discriminator-wt")
TWICE, HEAVY = "mt-twice", "mt,dae,electra-50"
SYSTEMS = {
    "mt": ("--multitask", "mt:1"),
    TWICE: ("--multitask", "mt:1"),
    "mt,dae": ("--multitask", "mt:1,dae:1"),
    "mt,dae,mlm": ("--multitask", "mt:1,dae:1,mlm:1"),
    "mt,dae,electra": (*ELECTRA, "1"),
    HEAVY: (*ELECTRA, "50"),
}
SEEDS = (1, 2)
UPDATES = (1800, 20)  # in full, and quick
CUT, SENTENCES = "pl", 1000
ALONE = (f"{CUT}-en", f"en-{CUT}")


def body(records: Records, scale: Scale) -> Report:
    records = records.beside("multitask", cut_data(records.study))
    measured = records.measure(trainings(scale), ["mt"])
    seeds = SEEDS[: len(measured["mt"])]
    paths = {name: [one.path for one in several] for name, several in measured.items()}
    tests = quality.significance(paths, seeds, "mt", ALONE)
    # Of about equal compute.
    pair = {name: paths[name] for name in (TWICE, "mt,dae") if name in paths}
    equal = quality.significance(pair, SEEDS[:1], TWICE, ALONE) if TWICE in pair else []
    columns = ["system", "seeds", *quality.COLUMNS, "deviation of BLEU all",
               *(f"BLEU {direction}" for direction in ALONE), "minutes"]  # fmt: skip
    rows = [row(name, several) for name, several in measured.items()]
    return Report(
        seeds=seeds,
        tables=[
            Table("multitask", "BLEU and chrF++, means over seeds", columns, rows),
            quality.significance_table("multitask-significance", tests, "mt"),
            *([quality.significance_table("multitask-compute", equal, TWICE)] if equal else []),
        ],
        findings=[
            *(quality.finding(tests, name, "mt") for name in [*measured][1:]),
            *([quality.finding(equal, "mt,dae", TWICE)] if equal else []),
        ],
        details={
            "updates": scale.pick(*UPDATES),
            "sentences": SENTENCES,
            **origins(measured),
            "signatures": quality.signatures(measured["mt"][0].results),
        },
    )


def trainings(scale: Scale) -> dict[str, list[Run]]:
    """Runs by system, of each seed."""
    pairs = (*scale.pairs, f"{CUT}-en") if scale.quick else scale.pairs
    return {
        name: [
            scale.run(
                f"multitask-{name.replace(',', '-')}",
                (*MOE, *flags),
                seed=seed,
                updates=scale.pick(*UPDATES) * (2 if name == TWICE else 1),
                validations=4,
                directions=both_ways(pairs),
            )
            for seed in (SEEDS[:1] if scale.quick or name in (TWICE, HEAVY) else SEEDS)
        ]
        for name, flags in SYSTEMS.items()
    }


def cut_data(study: Study) -> Path:
    """The corpus with a pair cut, binarised with the subwords of the whole."""
    whole = study.data.parent / "corpus" / "raw"
    raw, data = (study.folder / "multitask" / name for name in ("corpus/raw", "data"))
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


def row(name: str, several: list[Measured]) -> list[object]:
    results = [one.results for one in several]
    alone = [fmean(one["directions"][direction]["bleu"] for one in results) for direction in ALONE]
    minutes = fmean(one.curve[-1].seconds / 60 for one in several)
    spread = deviation([*map(quality.mean_bleu, results)])
    return [name, len(several), *quality.mean_scores(results), spread, *alone, minutes]


if __name__ == "__main__":
    main_with_records("multitask", __doc__, body)

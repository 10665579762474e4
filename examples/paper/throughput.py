#!/usr/bin/env python3
"""Throughput: words per second of training, tokens per second of translation.

Training: fairseq-train with stock's `transformer` and stock's task for many languages, the dense
twin of this plugin, and the MoE model with 8 experts, all with the same shape, batches of equal
size and the same optimizer; as one process, and as two ranks (the experts spread over both). Each
process has one thread. Words are target tokens, as fairseq counts them. Translation:
fairseq-generate with the dense model, the MoE model, the same with 4 of its experts, and with
experts of 8 bits. All are medians of rounds that go forth and back through the contestants.
"""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import translation
from decoding import Measurements, settings, speeds
from results import Report, Table
from study import DENSE, MOE, RATE, Scale, both_ways, main
from trainings import COMMON, SCRIPTS, STOCK, Study, call, length, read_log

from zcode_plugin.data.pairs import Pair
from zcode_plugin.reporting.logs import TRAIN

STOCK_MODEL = (
    *STOCK, "--task", "translation_multi_simple_epoch", "--criterion",
    "label_smoothed_cross_entropy", "--arch", "transformer", "--encoder-layers", "4",
    "--decoder-layers", "2", "--encoder-embed-dim", "128", "--decoder-embed-dim", "128",
    "--encoder-ffn-embed-dim", "512", "--decoder-ffn-embed-dim", "512",
    "--encoder-attention-heads", "4", "--decoder-attention-heads", "4",
    "--encoder-normalize-before", "--decoder-normalize-before", "--share-all-embeddings",
    "--lr", RATE, "--warmup-updates", "300",
)  # fmt: skip
CONTESTANTS = {
    "stock transformer": STOCK_MODEL,
    "dense": (*COMMON, *DENSE),
    "MoE": (*COMMON, *MOE),
}
RANKS = ("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp")
LOG = 20  # updates of a measurement of fairseq's


def body(study: Study, scale: Scale) -> Report:
    subject = [CONTESTANTS, *(run.options for run in (scale.dense(), scale.moe()))]
    measurements = Measurements(study.folder / "throughput.json", subject)
    rounds = scale.pick(3, 1)
    training = training_speeds(study, scale, measurements, rounds)
    files = decoders(study, scale)
    directions = [Pair(scale.pick("de", "cs"), "en")]
    own = settings(scale)
    translating = speeds(study, measurements, files, directions, rounds, own)
    ratios = [translating["MoE", one] / translating["dense", one] for one in own]
    return Report(
        seeds=[1],
        tables=[
            table("throughput", "Training, words per second", training),
            table("throughput-translation", "Translation, tokens per second", translating),
        ],
        findings=[
            "The MoE model trains "
            f"{training['MoE', '1 process'] / training['dense', '1 process']:.2f} times as fast "
            "as its dense twin, on two ranks "
            f"{training['MoE', '2 ranks'] / training['dense', '2 ranks']:.2f} times, and "
            f"translates {min(ratios):.2f} to {max(ratios):.2f} times as fast."
        ],
        details={"rounds": rounds, "threads of a process": 1},
    )


Key = TypeVar("Key", bound=Hashable)


def table(name: str, title: str, found: Mapping[tuple[str, Key], float]) -> Table:
    """Speeds by contestant and setting, and how they stand to the dense model's."""
    settings = list(dict.fromkeys(setting for _, setting in found))
    rows = [
        [
            one,
            *(
                value
                for setting in settings
                for value in (found[one, setting], found[one, setting] / found["dense", setting])
            ),
        ]
        for one in dict.fromkeys(one for one, _ in found)
    ]
    columns = [part for setting in settings for part in (str(setting), "x dense")]
    return Table(name, title, ["model", *columns], rows)


def training_speeds(
    study: Study, scale: Scale, measurements: Measurements, rounds: int
) -> dict[tuple[str, str], float]:
    """Words per second, by contestant and number of ranks."""
    found: dict[tuple[str, str], list[float]] = {}
    for place, ranks in (("1 process", 1), ("2 ranks", 2)):
        for number, name in translation.alternating(CONTESTANTS, rounds):

            def measure(name: str = name, ranks: int = ranks) -> float:
                return words_per_second(study, scale, name, ranks)

            speed = measurements.get(f"{name}, {place}, round {number + 1}", measure)
            found.setdefault((name, place), []).append(speed)
    return {key: median(some) for key, some in found.items()}


def words_per_second(study: Study, scale: Scale, name: str, ranks: int) -> float:
    """Of a short training; what is logged first is left out."""
    folder = study.folder / "throughput"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    line = [
        str(study.data), *CONTESTANTS[name], "--lang-pairs", ",".join(both_ways(scale.pairs)),
        *length(scale.pick(7, 3) * LOG), "--log-interval", str(LOG), "--no-save",
        "--disable-validation", "--save-dir", str(folder), "--seed", "1",
    ]  # fmt: skip
    if ranks > 1:
        line += RANKS
        line += ["--expert-parallel-size", str(ranks)] if name == "MoE" else []
    log = folder / "train.log"
    call([*launcher(ranks), str(SCRIPTS / "fairseq-train"), *line], log)
    return median(read_log(log).curve(TRAIN, "wps").values[2:])


def launcher(ranks: int) -> Sequence[str]:
    if ranks == 1:
        return ()
    return [str(SCRIPTS / "torchrun"), "--standalone", "--nproc-per-node", str(ranks)]


def decoders(study: Study, scale: Scale) -> dict[str, Path]:
    """Files to translate with."""
    dense, moe = scale.dense(), scale.moe()
    study.train([dense, moe])
    whole = study.checkpoint(moe)
    files = {"MoE, 4 of 8 experts": "half", "MoE, 8-bit experts": "int8"}
    paths = {name: whole.with_name(f"{short}.pt") for name, short in files.items()}
    half, int8 = paths.values()
    if not half.exists():
        options = ("--keep", "50%", "--by", "random", "--out", str(half))
        study.zcode("prune", str(whole), *options)
    if not int8.exists():
        study.zcode("quantise", str(whole), "--bits", "8", "--out", str(int8))
    return {"dense": study.checkpoint(dense), "MoE": whole, **paths}


if __name__ == "__main__":
    main("throughput", __doc__, body)

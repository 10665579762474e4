"""Binarises encoded text with stock fairseq-preprocess, and reads what it reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zcode_plugin.errors import UserError
from zcode_plugin.preparation.reading import CleanText
from zcode_plugin.stock.jobs import StockCommand, StockJob

# Such as: [de] /tmp/train.en-de.de: 2500 sents, 61234 tokens, 0.0% replaced (by <unk>)
_REPORT = re.compile(
    r"\[(?P<lang>\S+)\] (?P<path>.+): (?P<sentences>\d+) sents, (?P<tokens>\d+) tokens, "
    r"(?P<unknown>\S+)% replaced"
)


@dataclass(frozen=True)
class SideStatistics:
    """What fairseq-preprocess counted in one file; tokens include an end of sentence for each."""

    split: str
    name: str
    lang: str
    sentences: int
    tokens: int
    unknown_percent: float


def preprocess_arguments(
    texts: Sequence[CleanText], encoded: Path, dictionary: Path, destination: Path
) -> tuple[str, ...]:
    """The arguments of fairseq-preprocess for all splits of one pair or of one language."""
    langs = texts[0].langs
    arguments = ["--source-lang", langs[0], "--srcdict", str(dictionary)]
    if len(langs) == 2:
        arguments += ["--target-lang", langs[1], "--joined-dictionary"]
    else:
        arguments += ["--only-source"]
    for text in texts:
        arguments += [f"--{text.split}pref", str(encoded / text.prefix)]
    return (*arguments, "--destdir", str(destination), "--workers", "1")


def binarise(
    command: StockCommand, texts: Iterable[CleanText], work: Path, destination: Path
) -> list[SideStatistics]:
    """Binarise every text of `work/encoded` and move the `.bin` and `.idx` to `destination`.

    Each job has a folder of its own: stock writes the dictionaries again in each.

    Raises:
        UserError: a job failed; its message and the log's last line.
    """
    sets: dict[tuple[str, ...], list[CleanText]] = {}
    for text in texts:
        sets.setdefault(text.langs, []).append(text)
    jobs = []
    for langs, members in sets.items():
        folder = work / "binarised" / "-".join(langs)
        folder.mkdir(parents=True)
        arguments = preprocess_arguments(members, work / "encoded", work / "dictionary.txt", folder)
        jobs.append(StockJob("-".join(langs), arguments, folder / "output"))

    statistics: list[SideStatistics] = []
    for result, members in zip(command.run(jobs), sets.values(), strict=True):
        if result.exit_code != 0:
            raise UserError(f"fairseq-preprocess failed for {result.job.name}: {result.reason}")
        statistics += read_report(result.log, members)
        for path in result.job.output.parent.glob("*.*-*.*.*"):
            path.rename(destination / path.name)
    return statistics


def read_report(log: str, texts: Iterable[CleanText]) -> list[SideStatistics]:
    """What fairseq-preprocess says of each file of `texts`."""
    reports = {Path(match["path"]).name: match for match in _REPORT.finditer(log)}
    return [
        SideStatistics(
            split=text.split,
            name=text.name,
            lang=lang,
            sentences=int(reports[f"{text.prefix}.{lang}"]["sentences"]),
            tokens=int(reports[f"{text.prefix}.{lang}"]["tokens"]),
            unknown_percent=float(reports[f"{text.prefix}.{lang}"]["unknown"]),
        )
        for text in texts
        for lang in text.langs
    ]


def statistics_rows(statistics: Iterable[SideStatistics]) -> list[list[str]]:
    """Rows of a table, header first: one row a pair or language and split."""
    header = ["data", "split", "sentences", "src tokens", "unk %", "tgt tokens", "unk %"]
    rows = [header]
    by_text: dict[tuple[str, str], list[SideStatistics]] = {}
    for side in statistics:
        by_text.setdefault((side.name, side.split), []).append(side)
    for (name, split), sides in by_text.items():
        cells = [[f"{side.tokens:,}", f"{side.unknown_percent:.3f}"] for side in sides]
        both = [*cells, ["", ""]][:2]
        rows.append([name, split, f"{sides[0].sentences:,}", *both[0], *both[1]])
    return rows

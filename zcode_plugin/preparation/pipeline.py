"""The steps of `zcode prepare`, from texts that were found to a folder of binarised data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.console import count, step
from zcode_plugin.data.pairs import LANGS_FILE
from zcode_plugin.errors import UserError
from zcode_plugin.preparation import subwords
from zcode_plugin.preparation.binarise import SideStatistics, binarise
from zcode_plugin.preparation.inventory import SPLITS, Inventory, Selection
from zcode_plugin.preparation.reading import (
    CleanText,
    clean_monolingual,
    clean_parallel,
    clean_tsv,
)
from zcode_plugin.stock.jobs import StockCommand


@dataclass(frozen=True)
class Plan:
    """What to prepare and how.

    Args:
        found: the texts.
        selection: the languages and pairs of them that are wanted.
        options: of the SentencePiece model to train.
        model: a SentencePiece model to use in place of training one.
        skip_blank: drop aligned lines with a blank side.
        workers: processes, or threads, at a time.
    """

    found: Inventory
    selection: Selection
    options: subwords.SubwordOptions
    model: Path | None
    skip_blank: bool
    workers: int


@dataclass(frozen=True)
class Prepared:
    """What was made."""

    langs: tuple[str, ...]
    symbols: int
    statistics: list[SideStatistics]


def build(plan: Plan, folder: Path) -> Prepared:
    """Make everything but the manifest in `folder`, which is empty.

    Raises:
        UserError: bad text, or text that does not allow what is asked for.
    """
    work = folder / "work"
    for name in ("text", "encoded"):
        (work / name).mkdir(parents=True)
    texts = _clean(plan, work / "text")
    langs = _languages(texts, plan.selection)
    _provide_model(plan, texts, work, folder / subwords.MODEL_NAME)
    model = subwords.load_model(folder / subwords.MODEL_NAME)
    subwords.write_vocabulary(model, folder / subwords.VOCABULARY_NAME)

    pieces = (model.id_to_piece(index) for index in range(len(model)))
    symbols = subwords.dictionary_symbols(pieces, langs)
    subwords.write_dictionary(symbols, work / "dictionary.txt")
    for lang in langs:
        shutil.copyfile(work / "dictionary.txt", folder / f"dict.{lang}.txt")
    (folder / LANGS_FILE).write_text("".join(f"{lang}\n" for lang in langs), encoding="utf-8")

    _encode(model, texts, langs, work, plan.workers)
    statistics = _binarise(texts, work, folder, plan.workers)
    shutil.rmtree(work)
    return Prepared(langs, len(symbols), statistics)


def _clean(plan: Plan, folder: Path) -> list[CleanText]:
    """Write all wanted texts to `folder` as clean lines."""
    with step("read") as current:
        aligned = [clean_parallel(text, folder, plan.skip_blank) for text in plan.found.parallel]
        for tsv in plan.found.tsv:
            aligned += clean_tsv(tsv, folder, plan.selection, plan.skip_blank)
        _check_parallel(aligned, plan.selection)
        mono = [clean_monolingual(text, folder) for text in plan.found.monolingual]
        if not aligned and not mono:
            raise UserError("--langs and --pairs leave no text: name languages that there are")
        skipped = sum(text.skipped for text in (*aligned, *mono))
        current.detail = (
            f"{count(sum(text.sentences for text in aligned), 'aligned sentence')} of "
            f"{count(len({text.langs for text in aligned}), 'pair')}, "
            f"{sum(text.sentences for text in mono):,} monolingual"
            + (f", {count(skipped, 'blank line')} left out" if skipped else "")
        )
    return sorted(aligned, key=_order) + sorted(mono, key=_order)


def _order(text: CleanText) -> tuple[str, int]:
    return text.name, SPLITS.index(text.split)


def _check_parallel(texts: Sequence[CleanText], selection: Selection) -> None:
    """One stored direction a pair, one text a split, and every pair that was asked for."""
    order: dict[frozenset[str], tuple[str, ...]] = {}
    seen: set[tuple[str, str]] = set()
    for text in texts:
        if order.setdefault(frozenset(text.langs), text.langs) != text.langs:
            raise UserError(f"{text.name} stands in both orders: use one in all splits and files")
        if (text.split, text.name) in seen:
            raise UserError(f"{text.split} text of {text.name} is in --raw and in --tsv: keep one")
        seen.add((text.split, text.name))
    for pair in selection.pairs or ():
        if frozenset(pair) not in order:
            raise UserError(f"--pairs {'-'.join(pair)}: there is no text of this pair")


def _languages(texts: Sequence[CleanText], selection: Selection) -> tuple[str, ...]:
    there = sorted({lang for text in texts for lang in text.langs})
    for lang in selection.langs or ():
        if lang not in there:
            raise UserError(f"--langs {lang}: there is no text in it; leave it out")
    return selection.langs or tuple(there)


def _provide_model(plan: Plan, texts: Sequence[CleanText], work: Path, target: Path) -> None:
    """Train a SentencePiece model, or copy the given one."""
    if plan.model is not None:
        shutil.copyfile(plan.model, target)
        return
    with step(f"train SentencePiece ({plan.options.model_type})") as current:
        lines = subwords.distinct_lines(texts, work / "text", work / "distinct")
        if not lines:
            raise UserError("no training text: give some, or a model with --sentencepiece-model")
        sample = subwords.sampled_lines(lines, plan.options)
        subwords.train_model(sample, plan.options, target.parent)
        current.detail = f"{plan.options.vocab_size:,} pieces of {count(len(lines), 'language')}"


def _encode(
    model: Any, texts: Sequence[CleanText], langs: Sequence[str], work: Path, threads: int
) -> None:
    with step("encode") as current:
        for text in texts:
            subwords.encode_text(model, text, langs, work / "text", work / "encoded", threads)
        current.detail = count(sum(len(text.langs) for text in texts), "file")


def _binarise(
    texts: Sequence[CleanText], work: Path, folder: Path, workers: int
) -> list[SideStatistics]:
    with step("binarise with fairseq-preprocess") as current:
        with StockCommand("fairseq_cli.preprocess", workers, threads=1) as command:
            statistics = binarise(command, texts, work, folder)
        tokens = sum(side.tokens for side in statistics)
        current.detail = f"{count(len(statistics), 'side')}, {tokens:,} tokens"
    return statistics

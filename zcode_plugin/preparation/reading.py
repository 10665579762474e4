"""Reads text as users have it; writes it as clean lines or names the file and line that is bad.

Clean text: UTF-8, one sentence a line, every run of white space one space, no line blank.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

from zcode_plugin.errors import UserError
from zcode_plugin.open_files import allow_open_files
from zcode_plugin.preparation.inventory import (
    MonolingualText,
    ParallelText,
    Selection,
    TsvText,
    check_language,
)

BLANK_REMEDY = "mend it, or drop such lines with --skip-blank"


@dataclass(frozen=True)
class CleanText:
    """A text that lies as clean lines in `FOLDER/PREFIX.LANG`, one file for each of `langs`.

    `name` is `SRC-TGT` for aligned text and `LANG` for monolingual text.
    """

    split: str
    name: str
    langs: tuple[str, ...]
    sentences: int
    skipped: int

    @property
    def prefix(self) -> str:
        """Of the files' names, in the folder of the clean text and in that of the subwords."""
        return f"{self.split}.{self.name}" if len(self.langs) == 2 else f"mono.{self.split}"


def is_blank(text: str) -> bool:
    """Whether nothing of `text` can be seen: only separators, control and format characters."""
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file, ended by a line feed alone (so not by U+2028), without the end.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield decode_line(line, str(path), number)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def decode_line(line: bytes, name: str, number: int) -> str:
    """A line as text, without its end, and the first one without a byte order mark.

    Args:
        line: as it was read.
        name: of the file, for errors.
        number: of the line, from 1.

    Raises:
        UserError: it is not UTF-8.
    """
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
            f"{error.start + 1}); convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW"
        ) from None


def normalise_space(text: str) -> str:
    """One space for every run of white space; fairseq splits tokens at any white space."""
    return " ".join(text.split())


def clean_parallel(text: ParallelText, folder: Path, skip_blank: bool) -> CleanText:
    """Write both sides to `folder`.

    Raises:
        UserError: unequal line counts, a blank line (unless `skip_blank`), no line at all.
    """
    sentences = skipped = 0
    with ExitStack() as files:
        first, second = (
            files.enter_context(_create(folder / f"{text.split}.{text.pair}.{lang}"))
            for lang in text.langs
        )
        lines = zip_longest(*(read_lines(path) for path in text.paths))
        for number, (a, b) in enumerate(lines, start=1):
            if a is None or b is None:
                shorter = 0 if a is None else 1
                longer_count = number + sum(1 for _ in lines)
                raise UserError(
                    f"{text.paths[shorter]} has {number - 1} lines but {text.paths[1 - shorter]} "
                    f"has {longer_count}: both need one sentence a line, aligned"
                )
            blank = [path for path, side in zip(text.paths, (a, b), strict=True) if is_blank(side)]
            if blank and not skip_blank:
                raise UserError(f"{blank[0]}:{number}: the line is blank; {BLANK_REMEDY}")
            skipped += bool(blank)
            if not blank:
                sentences += 1
                print(normalise_space(a), file=first)
                print(normalise_space(b), file=second)
    _refuse_empty(text.paths[0], sentences)
    return CleanText(text.split, text.pair, text.langs, sentences, skipped)


def clean_monolingual(text: MonolingualText, folder: Path) -> CleanText:
    """Write the text to `folder`; blank lines, which often part documents, are left out."""
    sentences = skipped = 0
    with _create(folder / f"mono.{text.split}.{text.lang}") as file:
        for line in read_lines(text.path):
            if is_blank(line):
                skipped += 1
            else:
                sentences += 1
                print(normalise_space(line), file=file)
    _refuse_empty(text.path, sentences)
    return CleanText(text.split, text.lang, (text.lang,), sentences, skipped)


def clean_tsv(
    text: TsvText, folder: Path, selection: Selection, skip_blank: bool
) -> list[CleanText]:
    """Write the wanted pairs of columns to `folder`, each with the rows that have both cells.

    Raises:
        UserError: a bad header, a row with too few or many cells or with none that is not blank
            (unless `skip_blank`), no row for any wanted pair.
    """
    allow_open_files()
    columns = _columns(text.path)
    sentences = dict.fromkeys(selection.columns(columns), 0)
    skipped = 0
    with ExitStack() as files:
        outputs = {
            (pair, lang): files.enter_context(
                _create(folder / f"{text.split}.{'-'.join(pair)}.{lang}")
            )
            for pair in sentences
            for lang in pair
        }
        for number, cells in _rows(text.path, columns):
            if not cells and not skip_blank:
                raise UserError(f"{text.path}:{number}: every cell is blank; {BLANK_REMEDY}")
            skipped += not cells
            for pair in sentences:
                if pair[0] in cells and pair[1] in cells:
                    sentences[pair] += 1
                    for lang in pair:
                        print(cells[lang], file=outputs[pair, lang])
    _refuse_empty(text.path, sum(sentences.values()) if sentences else 1)
    there = [pair for pair, number in sentences.items() if number]
    return [
        # A line that is blank in all cells is one, however many pairs there are.
        CleanText(text.split, "-".join(pair), pair, sentences[pair], 0 if place else skipped)
        for place, pair in enumerate(there)
    ]


def _columns(path: Path) -> list[str]:
    header = next(read_lines(path), "")
    columns = [cell.strip() for cell in header.split("\t")]
    if len(columns) < 2 or len(set(columns)) < len(columns):
        raise UserError(
            f"{path}:1: the first line must name two or more different languages, one a column, "
            f"parted by tabs; it reads {header!r}"
        )
    return [check_language(code, f"{path}:1") for code in columns]


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the cells that are not blank, by language."""
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise UserError(
                f"{path}:{number}: {len(cells)} columns, but the first line names {len(columns)}; "
                "leave the cell of a missing translation empty"
            )
        if number > 1:
            named = zip(columns, cells, strict=True)
            yield number, {lang: normalise_space(c) for lang, c in named if not is_blank(c)}


def _refuse_empty(path: Path, sentences: int) -> None:
    if sentences == 0:
        raise UserError(f"{path}: no sentence in it; give it text or leave the file out")


def _create(path: Path) -> TextIO:
    # newline="": what is written is what fairseq's byte offsets are about to count.
    return path.open("w", encoding="utf-8", newline="")

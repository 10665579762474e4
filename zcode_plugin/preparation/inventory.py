"""Which text there is: names of files in a raw folder, columns of TSV files, and what is wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from zcode_plugin.errors import UserError, suggestion

SPLITS = ("train", "valid", "test")
MONO_SPLITS = ("train", "valid")

_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SIDE_NAME = re.compile(r"(?P<split>[^.]+)\.(?P<pair>[^.]*-[^.]*)\.(?P<lang>.+)")
_OUR_PREFIXES = tuple(f"{split}." for split in SPLITS)


@dataclass(frozen=True)
class ParallelText:
    """Two files of aligned lines; `langs` and `paths` in the same order."""

    split: str
    langs: tuple[str, str]
    paths: tuple[Path, Path]

    @property
    def pair(self) -> str:
        """`SRC-TGT`."""
        return "-".join(self.langs)


@dataclass(frozen=True)
class MonolingualText:
    """One file of sentences in one language."""

    split: str
    lang: str
    path: Path


@dataclass(frozen=True)
class TsvText:
    """A file of aligned sentences, one column a language."""

    split: str
    path: Path


@dataclass(frozen=True)
class Inventory:
    """All texts that were found or given."""

    parallel: tuple[ParallelText, ...] = ()
    monolingual: tuple[MonolingualText, ...] = ()
    tsv: tuple[TsvText, ...] = ()

    @property
    def paths(self) -> dict[str, Path]:
        """Every file, by what it is to us."""
        sides = {
            f"{text.split}.{text.pair}.{lang}": path
            for text in self.parallel
            for lang, path in zip(text.langs, text.paths, strict=True)
        }
        mono = {f"mono.{text.split}.{text.lang}": text.path for text in self.monolingual}
        return sides | mono | {f"{text.split}.tsv": text.path for text in self.tsv}


@dataclass(frozen=True)
class Selection:
    """Which languages and pairs are wanted.

    Args:
        langs: languages wanted; None for all.
        pairs: pairs wanted, in any order; None for all that are stored as pairs, and of a TSV file
            the first column with every other one.
        every_pair: of a TSV file every two columns.
    """

    langs: tuple[str, ...] | None = None
    pairs: tuple[tuple[str, str], ...] | None = None
    every_pair: bool = False

    def wants(self, langs: Iterable[str]) -> bool:
        """Whether a text in these languages, one or two, is wanted."""
        asked = set(langs)
        if self.langs is not None and not asked <= set(self.langs):
            return False
        return self.pairs is None or len(asked) == 1 or asked in [set(pair) for pair in self.pairs]

    def columns(self, columns: Sequence[str]) -> list[tuple[str, str]]:
        """The pairs of a TSV file's columns that are wanted, in the order that was asked for."""
        if self.pairs is not None:
            possible: Iterable[tuple[str, str]] = (p for p in self.pairs if set(p) <= set(columns))
        elif self.every_pair:
            possible = combinations(columns, 2)
        else:
            possible = ((columns[0], other) for other in columns[1:])
        return [pair for pair in possible if self.wants(pair)]


def check_language(code: str, where: str) -> str:
    """`code` itself, or a UserError that begins with `where`."""
    if _LANGUAGE.fullmatch(code):
        return code
    remedy = f"write {code.replace('-', '_')}" if "-" in code else "use letters, digits and _"
    raise UserError(f"{where}: {code!r} is no language code: {remedy}")


def parse_languages(text: str) -> tuple[str, ...]:
    """The value of `--langs`."""
    langs = tuple(check_language(code, "--langs") for code in text.split(","))
    if len(set(langs)) < len(langs):
        raise UserError(f"--langs {text} names a language twice: name each once")
    return langs


def parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """The value of `--pairs`, other than `all`."""
    pairs: list[tuple[str, str]] = []
    for name in text.split(","):
        codes = name.split("-")
        if len(codes) != 2 or codes[0] == codes[1]:
            raise UserError(f"--pairs {name!r} is not SRC-TGT: write two languages, such as en-de")
        first, second = (check_language(code, "--pairs") for code in codes)
        pairs.append((first, second))
    return tuple(pairs)


def parse_tsv(arguments: Iterable[str]) -> tuple[TsvText, ...]:
    """The values of `--tsv`: `SPLIT=FILE` each, one file a split."""
    texts: dict[str, TsvText] = {}
    for argument in arguments:
        split, equals, name = argument.partition("=")
        if not equals or not name:
            raise UserError(f"--tsv {argument!r} is not SPLIT=FILE: write, say, train={argument}")
        if split not in SPLITS:
            raise UserError(f"--tsv {argument}: unknown split {split!r}; use train, valid or test")
        if split in texts:
            raise UserError(f"--tsv {argument}: split {split} is given twice; join the files")
        if not Path(name).is_file():
            raise UserError(f"--tsv {argument}: there is no file {name}")
        texts[split] = TsvText(split, Path(name))
    return tuple(texts.values())


def find_raw(folder: Path) -> Inventory:
    """Find `SPLIT.SRC-TGT.LANG` and `mono.SPLIT.LANG.txt` in `folder`; other names are ignored.

    Raises:
        UserError: no such folder, a name that is nearly right, a side that is missing.
    """
    if not folder.is_dir():
        raise UserError(f"--raw {folder}: there is no such folder")
    sides: dict[tuple[str, tuple[str, str]], dict[str, Path]] = {}
    mono: dict[tuple[str, str], MonolingualText] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("mono."):
            text = _monolingual(path)
            if (text.split, text.lang) in mono:
                raise UserError(f"{path}: {mono[text.split, text.lang].path} is the same; keep one")
            mono[text.split, text.lang] = text
        elif match := _SIDE_NAME.fullmatch(path.name):
            split, langs, lang = _check_side(path, match)
            sides.setdefault((split, langs), {})[lang] = path
        elif path.name.startswith(_OUR_PREFIXES):
            raise UserError(f"{path}: the name is not SPLIT.SRC-TGT.LANG, such as train.en-de.de")
    texts = [_parallel(folder, *key, found) for key, found in sides.items()]
    _check_both_orders(texts)
    if not texts and not mono:
        raise UserError(f"--raw {folder}: no file is named as train.en-de.en or mono.train.en.txt")
    return Inventory(tuple(texts), tuple(mono.values()))


def _monolingual(path: Path) -> MonolingualText:
    parts = path.name.split(".")[1:]
    if len(parts) == 2:  # mono.LANG.txt
        parts.insert(0, "train")
    if len(parts) != 3 or parts[0] not in MONO_SPLITS or parts[2] != "txt" or parts[1] in SPLITS:
        raise UserError(f"{path}: the name is not mono.{{train,valid}}.LANG.txt or mono.LANG.txt")
    return MonolingualText(parts[0], check_language(parts[1], str(path)), path)


def _check_side(path: Path, match: re.Match[str]) -> tuple[str, tuple[str, str], str]:
    split, pair, lang = match["split"], match["pair"], match["lang"]
    if split not in SPLITS:
        near = suggestion(split, SPLITS) or "; rename it to train, valid or test"
        raise UserError(f"{path}: unknown split {split!r}{near}")
    codes = pair.split("-")
    if len(codes) != 2:
        raise UserError(f"{path}: {pair!r} is not SRC-TGT: write _ for - within a language code")
    first, second = (check_language(code, str(path)) for code in codes)
    if lang not in codes or first == second:
        raise UserError(f"{path}: the name must end in one of the two languages of {pair}")
    return split, (first, second), lang


def _parallel(
    folder: Path, split: str, langs: tuple[str, str], found: dict[str, Path]
) -> ParallelText:
    for lang in langs:
        if lang not in found:
            missing = folder / f"{split}.{'-'.join(langs)}.{lang}"
            other = next(iter(found.values()))
            raise UserError(f"{missing} is missing, but its other side, {other}, is there")
    return ParallelText(split, langs, (found[langs[0]], found[langs[1]]))


def _check_both_orders(texts: Sequence[ParallelText]) -> None:
    order: dict[frozenset[str], ParallelText] = {}
    for text in texts:
        first = order.setdefault(frozenset(text.langs), text)
        if first.pair != text.pair:
            raise UserError(
                f"{text.paths[0]}: {first.paths[0].name} names the same pair as {first.pair}; "
                "use one order in all splits"
            )

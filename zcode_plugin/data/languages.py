"""Languages, directions and the files that hold them, in a directory of `fairseq-preprocess`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq.data import Dictionary

from zcode_plugin.data.symbols import MASK, language_token, objective_token
from zcode_plugin.errors import UserError

LANGS_FILE = "langs.txt"
_PAIR_FILE = re.compile(r"(?P<split>.+)\.(?P<src>[^.-]+)-(?P<tgt>[^.-]+)\.(?P<lang>[^.-]+)\.idx")


@dataclass(frozen=True, order=True)
class Pair:
    """A direction of translation, written `src-tgt`."""

    src: str
    tgt: str

    def __str__(self) -> str:
        return f"{self.src}-{self.tgt}"

    @property
    def reverse(self) -> Pair:
        return Pair(self.tgt, self.src)

    @classmethod
    def parse(cls, text: str) -> Pair:
        src, dash, tgt = text.strip().partition("-")
        if not (src and dash and tgt) or "-" in tgt:
            raise UserError(f"--lang-pairs: {text!r} is no pair, write it as src-tgt")
        return cls(src, tgt)


def stored_pairs(directory: Path, split: str) -> list[Pair]:
    """Pairs with binarised data of the split, as stored, in alphabetic order."""
    found = set()
    for path in directory.glob(f"{split}.*.idx"):
        match = _PAIR_FILE.fullmatch(path.name)
        if match and match["split"] == split and match["tgt"] != "None":
            found.add(Pair(match["src"], match["tgt"]))
    return sorted(found)


def all_pairs(directory: Path) -> list[Pair]:
    """Both directions of every pair with training data, else with any split of the usual names."""
    for split in ("train", "valid", "test"):
        stored = stored_pairs(directory, split)
        if stored:
            return sorted({*stored, *(pair.reverse for pair in stored)})
    return []


def monolingual_languages(directory: Path, split: str) -> list[str]:
    """Languages with data of the split that `fairseq-preprocess --only-source` wrote."""
    names = [path.name.split(".") for path in directory.glob(f"{split}.*-None.*.idx")]
    return sorted({parts[-2] for parts in names if parts[-3] == f"{parts[-2]}-None"})


def pair_prefix(directory: Path, split: str, pair: Pair) -> Path | None:
    """Path prefix `.../split.src-tgt.` of a direction stored in either order, if there is one."""
    for stored in (pair, pair.reverse):
        prefix = directory / f"{split}.{stored}."
        if all(Path(f"{prefix}{lang}.idx").exists() for lang in (pair.src, pair.tgt)):
            return prefix
    return None


def monolingual_prefix(directory: Path, split: str, lang: str) -> Path | None:
    """Path prefix of monolingual data, if there is any."""
    prefix = directory / f"{split}.{lang}-None."
    return prefix if Path(f"{prefix}{lang}.idx").exists() else None


def resolve_languages(
    directory: Path, langs: list[str] | None, lang_dict: str | None, pairs: list[Pair]
) -> list[str]:
    """All languages, in the order that numbers their tokens.

    Taken from `--langs`, else from the file `--lang-dict`, else from `langs.txt` beside the data,
    else from the pairs, sorted.

    Raises:
        UserError: both flags, an unreadable file, or a pair with a language that is missing.
    """
    if langs and lang_dict:
        raise UserError("--langs and --lang-dict exclude each other: give one of them")
    source = "--langs"
    if not langs:
        source = lang_dict or str(directory / LANGS_FILE)
        if lang_dict or Path(source).exists():
            langs = _read_list(source)
        else:
            langs = sorted({lang for pair in pairs for lang in (pair.src, pair.tgt)})
    for pair in pairs:
        for lang in (pair.src, pair.tgt):
            if lang not in langs:
                raise UserError(
                    f"language {lang} of the pair {pair} is not in {source} ({','.join(langs)}): "
                    "add it there or drop the pair"
                )
    return langs


def _read_list(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list of languages {path}: {error}") from None
    if not lines:
        raise UserError(f"the list of languages {path} is empty: write one language a line")
    return lines


def add_special_symbols(
    dictionary: Dictionary, langs: list[str], objectives: Sequence[str] = ()
) -> None:
    """Append language tokens, the mask and objective tokens where the dictionary lacks them.

    A dictionary that has them already keeps all its numbers.
    """
    for lang in langs:
        dictionary.add_symbol(language_token(lang))
    dictionary.add_symbol(MASK)
    for objective in objectives:
        dictionary.add_symbol(objective_token(objective))


def dictionary_of(symbols: Sequence[str]) -> Dictionary:
    """Of all symbols in the order of their numbers, fairseq's own first."""
    dictionary = Dictionary()
    for symbol in symbols[dictionary.nspecial :]:
        dictionary.add_symbol(symbol, overwrite=True)  # each gets a number, as in the list
    return dictionary

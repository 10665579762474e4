"""Directions of translation, and the files that hold them in a folder of `fairseq-preprocess`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from zcode_plugin.errors import UserError

LANGS_FILE = "langs.txt"  # the languages, in the order of their tokens
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

    @property
    def group(self) -> str:
        """`X->en`, `en->X` or `other`; any code of English counts: en, en_XX, eng_Latn."""
        english = [re.fullmatch(r"eng?(_.*)?", lang) is not None for lang in (self.src, self.tgt)]
        if english[0] == english[1]:
            return "other"
        return "en->X" if english[0] else "X->en"

    @classmethod
    def parse(cls, text: str, flag: str = "--lang-pairs") -> Pair:
        src, dash, tgt = text.strip().partition("-")
        if not (src and dash and tgt) or "-" in tgt:
            raise UserError(f"{flag}: {text!r} is no pair, write it as src-tgt")
        return cls(src, tgt)


def stored_pairs(directory: Path, split: str) -> list[Pair]:
    """Pairs with binarised data of the split, as stored, in alphabetic order."""
    found = set()
    for path in directory.glob(f"{split}.*.idx"):
        match = _PAIR_FILE.fullmatch(path.name)
        if match and match["split"] == split and match["tgt"] != "None":
            found.add(Pair(match["src"], match["tgt"]))
    return sorted(found)


def stored_directions(directory: Path, split: str) -> list[Pair]:
    """Both directions of every pair with data of the split, in alphabetic order."""
    stored = stored_pairs(directory, split)
    return sorted({*stored, *(pair.reverse for pair in stored)})


def all_pairs(directory: Path) -> list[Pair]:
    """Both directions of every pair with training data, else with any split of the usual names."""
    for split in ("train", "valid", "test"):
        _refuse_dashes(directory, split)
        if found := stored_directions(directory, split):
            return found
    return []


def _refuse_dashes(directory: Path, split: str) -> None:
    """A pair with a code like zh-Hans would otherwise be left out without a word."""
    for path in sorted(directory.glob(f"{split}.*-*-*.*.idx")):
        pair = path.name[len(split) + 1 :].partition(".")[0]
        if not pair.endswith("-None"):
            raise UserError(
                f"{path}: which dash of {pair} parts its languages? Rename the files, with _ for - "
                "in a language, or name other pairs with --lang-pairs"
            )


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

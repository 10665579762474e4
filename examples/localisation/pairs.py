"""Turn raw catalog strings into clean lines and keep the pairs worth training on."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

# What a translation must carry over unchanged: printf fields (the space flag is left out, or
# "100% done" would hold one), brace fields, reStructuredText roles, markup tags.
_PLACEHOLDER = re.compile(
    r"""
    %(?:\(\w+\))?[-+\#0]*(?:\d+|\*)?(?:\.\d+)?[diouxXeEfFgGcrsa%]
    | \{[^{}]*\}
    | :[a-z][a-z:]*:`[^`]*`
    | </?[A-Za-z][^<>]*>
    """,
    re.VERBOSE,
)
# Zero-width space, soft hyphen, byte order mark: they show nothing and split words.
_INVISIBLE = dict.fromkeys((0x200B, 0x00AD, 0xFEFF))
_MAX_CHARACTERS = 300
_MAX_LENGTH_RATIO = 3.0
# Below this many characters a ratio says nothing ("OK" and "Accettare").
_RATIO_FREE_CHARACTERS = 12


def one_line(text: str) -> str:
    """Return `text` in NFC, without invisible characters, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_INVISIBLE)).split())


def placeholders(text: str) -> Counter[str]:
    """Count the fields, roles and tags of `text`."""
    return Counter(_PLACEHOLDER.findall(text))


def without_placeholders(text: str) -> str:
    """Return `text` with a space in the place of each field, role and tag."""
    return _PLACEHOLDER.sub(" ", text)


def is_clean(text: str) -> bool:
    """Whether a line is worth having on either side: it has letters and is not overlong."""
    letters = any(character.isalpha() for character in without_placeholders(text))
    printable = all(unicodedata.category(character) != "Cc" for character in text)
    return letters and printable and len(text) <= _MAX_CHARACTERS


def is_good_pair(english: str, translation: str) -> bool:
    """Whether `translation` looks like a full translation of `english` (both one clean line)."""
    if english.casefold() == translation.casefold():
        return False
    if placeholders(english) != placeholders(translation):
        return False
    lengths = sorted((len(english), len(translation)))
    return lengths[1] <= max(_RATIO_FREE_CHARACTERS, _MAX_LENGTH_RATIO * lengths[0])


def clean_pairs(strings: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Reduce one language's occurrences to one translation for each English line.

    Catalogs disagree now and then; the most frequent translation wins and the first one seen
    among equals, so that a line has one reference wherever it stands.
    """
    votes: dict[str, Counter[str]] = {}
    for raw_english, raw_translation in strings:
        english, translation = one_line(raw_english), one_line(raw_translation)
        if is_clean(english) and is_clean(translation) and is_good_pair(english, translation):
            votes.setdefault(english, Counter())[translation] += 1
    return {english: seen.most_common(1)[0][0] for english, seen in votes.items()}

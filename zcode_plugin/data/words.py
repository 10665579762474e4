"""Which pieces of a vocabulary make a word together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from fairseq.data import Dictionary

from zcode_plugin.data.symbols import GLUED, SPACE

Words = list[np.ndarray]

# Thai, Lao, Tibetan, Myanmar, Khmer, kana and Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class WordPieces:
    """How pieces make words.

    Attributes:
        begins: bool over the vocabulary, True for a piece that begins a word.
        unfinished: the same, True for a piece to whose word the next belongs, too.
    """

    begins: np.ndarray
    unfinished: np.ndarray

    @classmethod
    def of(cls, dictionary: Dictionary) -> WordPieces:
        """As a dictionary shows it.

        SentencePiece marks the begin of a word with a space, subword-nmt ends all its pieces but
        the last in `@@`. Without any such mark every symbol is a word, as is with SentencePiece
        every piece of a script that writes no spaces between words.
        """
        symbols = dictionary.symbols
        spaced = _flags(symbol.startswith(SPACE) for symbol in symbols)
        if spaced.any():
            unspaced = _flags(_UNSPACED.search(symbol) is not None for symbol in symbols)
            return cls(spaced | unspaced, np.zeros_like(spaced))
        return cls(np.ones_like(spaced), _flags(symbol.endswith(GLUED) for symbol in symbols))

    def split(self, tokens: np.ndarray) -> Words:
        """The pieces of each word of a sentence, int64 [N]."""
        if not len(tokens):
            return []
        inside = ~self.begins[tokens[1:]] | self.unfinished[tokens[:-1]]
        return np.split(tokens, np.flatnonzero(~inside) + 1)


def _flags(values: Iterable[bool]) -> np.ndarray:
    return np.fromiter(values, dtype=bool)

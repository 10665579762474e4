"""Masking for masked language modelling: what the encoder must predict from the words around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zcode_plugin.data.words import WordPieces
from zcode_plugin.errors import UserError


@dataclass(frozen=True)
class Masking:
    """How tokens are chosen and hidden. Source: BERT (arXiv 1810.04805), section 3.1.

    Attributes:
        rate: probability that a word is chosen, or a token.
        replace: probability that a chosen token becomes a random one.
        keep: probability that a chosen token stays; the others become the mask.
        whole_words: choose all pieces of a word together; each then meets a fate of its own.
    """

    rate: float = 0.15
    replace: float = 0.1
    keep: float = 0.1
    whole_words: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"--mlm-mask {self.rate} must lie in (0, 1]")
        if min(self.replace, self.keep) < 0 or self.replace + self.keep > 1:
            raise UserError(
                f"--mlm-random {self.replace} and --mlm-keep {self.keep} must not be negative, nor "
                "sum to more than 1"
            )

    def apply(
        self,
        tokens: np.ndarray,
        pieces: WordPieces,
        ordinary: np.ndarray,
        mask: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A copy with tokens hidden, and a mask of those to predict: at least one.

        Args:
            tokens: int64 [N], without end of sentence.
            pieces: how they make words.
            ordinary: int64, the tokens from which random ones are drawn.
            mask: index of the mask token.
            rng: source of all draws.
        """
        chosen = self._choose(tokens, pieces, rng)
        fate = rng.random(len(tokens))
        hidden = tokens.copy()
        hidden[chosen & (fate >= self.replace + self.keep)] = mask
        random = chosen & (fate < self.replace)
        hidden[random] = rng.choice(ordinary, int(random.sum()))
        return hidden, chosen

    def _choose(
        self, tokens: np.ndarray, pieces: WordPieces, rng: np.random.Generator
    ) -> np.ndarray:
        if self.whole_words:
            lengths = [len(word) for word in pieces.split(tokens)]
        else:
            lengths = [1] * len(tokens)
        words = rng.random(len(lengths)) < self.rate
        if lengths and not words.any():
            words[rng.integers(len(lengths))] = True
        return np.repeat(words, lengths)

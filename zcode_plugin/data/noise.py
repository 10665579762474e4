"""Noise for denoising auto-encoding: what is done to a sentence that the model must restore."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from zcode_plugin.data.words import WordPieces, Words
from zcode_plugin.errors import UserError


@dataclass(frozen=True)
class Noise:
    """Rates of each kind of noise; they apply to whole words, in the order given here.

    Attributes:
        shuffle_distance: words move by less than this many places (local shuffle); 0 for none.
        delete: probability that a word is deleted.
        infill: share of the words to be hidden in spans, each span replaced by one mask.
        span_length: mean length of those spans in words, Poisson distributed.
        mask: probability that a word is replaced by one mask.
    """

    shuffle_distance: float = 3.0
    delete: float = 0.1
    infill: float = 0.0
    span_length: float = 3.0
    mask: float = 0.1

    def __post_init__(self) -> None:
        for name in ("delete", "infill", "mask"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--dae-{name} {getattr(self, name)} must lie in [0, 1)")
        if not 0 <= self.shuffle_distance < math.inf:
            raise UserError(
                f"--dae-shuffle-distance {self.shuffle_distance} must be finite and not negative"
            )
        if not 0 < self.span_length < math.inf:
            raise UserError(f"--dae-span-length {self.span_length} must be finite and positive")

    def scaled(self, factor: float) -> Noise:
        """The same kinds of noise, each rate and the shuffle's distance times a factor."""
        return replace(
            self,
            shuffle_distance=factor * self.shuffle_distance,
            delete=factor * self.delete,
            infill=factor * self.infill,
            mask=factor * self.mask,
        )

    def apply(
        self, tokens: np.ndarray, pieces: WordPieces, mask: int, rng: np.random.Generator
    ) -> np.ndarray:
        """A noised copy; at least one token stays.

        Args:
            tokens: int64 [N], without end of sentence.
            pieces: how they make words.
            mask: index of the mask token.
            rng: source of all draws.
        """
        words = pieces.split(tokens)
        words = local_shuffle(words, self.shuffle_distance, rng)
        words = delete_words(words, self.delete, rng)
        words = infill_spans(words, self.infill, self.span_length, mask, rng)
        words = mask_words(words, self.mask, mask, rng)
        return np.concatenate(words) if words else tokens


def local_shuffle(words: Words, distance: float, rng: np.random.Generator) -> Words:
    """Sort words by place + U(0, distance): none moves by `distance` places or more.

    Source: Lample et al., "Unsupervised Machine Translation Using Monolingual Corpora Only",
    section 2.3.
    """
    if distance <= 1 or len(words) < 2:
        return words
    places = np.arange(len(words)) + rng.uniform(0, distance, len(words))
    return [words[index] for index in np.argsort(places, kind="stable")]


def delete_words(words: Words, rate: float, rng: np.random.Generator) -> Words:
    """Delete each word with probability `rate`; one word stays whatever the draws."""
    if rate <= 0 or not words:
        return words
    keep = rng.random(len(words)) >= rate
    if not keep.any():
        keep[rng.integers(len(words))] = True
    return [word for word, kept in zip(words, keep, strict=True) if kept]


def infill_spans(
    words: Words, rate: float, span_length: float, mask: int, rng: np.random.Generator
) -> Words:
    """Replace spans that together hold about `rate` of the words by one mask each.

    Lengths are Poisson distributed; a span of length 0 inserts a mask, as long as the sentence
    does not outgrow the original. Source: BART (arXiv 1910.13461), section 2.2, "text infilling".
    """
    budget = round(rate * len(words))
    longest = len(words)
    hole = np.array([mask], dtype=np.int64)
    # A bound on the draws: spans of length 0 use up no budget.
    for _ in range(2 * budget + 1):
        if budget <= 0:
            break
        length = min(int(rng.poisson(span_length)), budget)
        if length == 0 and len(words) >= longest:
            continue
        start = int(rng.integers(len(words) - length + 1))
        if any(len(word) == 1 and word[0] == mask for word in words[start : start + length]):
            continue
        words = [*words[:start], hole, *words[start + length :]]
        budget -= length
    return words


def mask_words(words: Words, rate: float, mask: int, rng: np.random.Generator) -> Words:
    """Replace each word by one mask with probability `rate`."""
    if rate <= 0:
        return words
    hit = rng.random(len(words)) < rate
    hole = np.array([mask], dtype=np.int64)
    return [hole if masked else word for word, masked in zip(words, hit, strict=True)]

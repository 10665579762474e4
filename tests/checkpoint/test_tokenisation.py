"""Which SentencePiece model goes with a vocabulary."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from zcode_plugin.checkpoint.tokenisation import Vocabulary, find_sentencepiece
from zcode_plugin.data.symbols import SPECIAL, language_token
from zcode_plugin.errors import UserError


def made_up(rng: random.Random, number: int) -> list[str]:
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    return ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(number)]


def train(path: Path, seed: int) -> Path:
    """A model of 100 words that are common to all seeds, and 50 of this one."""
    rng = random.Random(seed)
    words = made_up(random.Random(0), 100) + made_up(rng, 50)
    lines = [" ".join(rng.choices(words, k=8)) for _ in range(400)]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), vocab_size=170,
        minloglevel=2,
    )  # fmt: skip
    return path


def test_a_model_of_another_text_is_refused(tmp_path: Path) -> None:
    """However much the two have in common."""
    own, other = train(tmp_path / "own.model", 1), train(tmp_path / "other.model", 2)
    processor = SentencePieceProcessor(model_file=str(own))
    pieces = [processor.id_to_piece(number) for number in range(3, len(processor))]
    # What fairseq-preprocess adds: padding, and characters that no piece stands for.
    added = ["madeupword0000", "\u00e9", language_token("aa")]
    vocabulary = Vocabulary([*SPECIAL, *pieces, *added], ["aa"], None, False)
    assert find_sentencepiece(own, None, vocabulary) == own
    with pytest.raises(UserError, match=r"other\.model is of another text: it has [4-8]\d% of the"):
        find_sentencepiece(other, None, vocabulary)

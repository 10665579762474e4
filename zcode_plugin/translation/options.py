"""How translations are searched for and batched, with the names and defaults of stock fairseq."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zcode_plugin.errors import UserError


@dataclass(frozen=True)
class Search:
    """Beam search, as of fairseq-generate.

    Attributes:
        beam: hypotheses that are followed at a time.
        nbest: of those, how many are returned.
        lenpen: below 1 favours short translations, above 1 long ones.
        max_len_a: a translation has at most a x + b tokens, x those of its source. As in stock, x
            is that of the longest source in the batch.
        max_len_b: see `max_len_a`.

    Raises:
        UserError: a value that cannot be, under the name of its flag.
    """

    beam: int = 5
    nbest: int = 1
    lenpen: float = 1.0
    max_len_a: float = 0.0
    max_len_b: int = 200

    def __post_init__(self) -> None:
        _check_positive("--beam", self.beam)
        _check_positive("--nbest", self.nbest)
        if self.nbest > self.beam:
            raise UserError(f"--nbest {self.nbest} is more than --beam {self.beam}: raise that")
        if not math.isfinite(self.lenpen):
            raise UserError(f"--lenpen {self.lenpen} must be a finite number")
        # A source has two tokens at least: one of text and the end.
        if not (0 <= self.max_len_a < math.inf) or 2 * self.max_len_a + self.max_len_b < 1:
            raise UserError(
                f"--max-len-a {self.max_len_a:g} --max-len-b {self.max_len_b} leave no room for a "
                "translation: raise one of them"
            )


@dataclass(frozen=True)
class Batching:
    """How many sentences are translated at a time.

    Attributes:
        max_tokens: of a batch's sources, padding included.
        batch_size: sentences of a batch; None for no such limit.

    Raises:
        UserError: a value that cannot be, under the name of its flag.
    """

    max_tokens: int = 4096
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _check_positive("--max-tokens", self.max_tokens)
        if self.batch_size is not None:
            _check_positive("--batch-size", self.batch_size)


def _check_positive(flag: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{flag} {value} must be at least 1")

"""Corpora of one direction or language, with language tokens in their places."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from fairseq.data import Dictionary, PrependTokenDataset, data_utils
from fairseq.data.indexed_dataset import IndexedDataset, infer_dataset_impl
from torch import Tensor

from zcode_plugin.data.masking import Masking
from zcode_plugin.data.noise import Noise
from zcode_plugin.data.schedules import Schedule
from zcode_plugin.data.words import WordPieces
from zcode_plugin.errors import UserError

Example = dict[str, Tensor]


class Corpus(Protocol):
    """Rows of sentence pairs."""

    name: str
    src_sizes: np.ndarray
    tgt_sizes: np.ndarray

    def __len__(self) -> int: ...

    def start_epoch(self, epoch: int) -> None:
        """Called before the examples of an epoch are asked for."""
        ...

    def example(self, row: int, key: tuple[int, ...]) -> Example:
        """`source` and `target` of a row; `key` seeds whatever is drawn for it."""
        ...


class _SoughtDataset(IndexedDataset):
    """Sentences that are sought in a file, by each process in one that it opened itself.

    A file that is open when workers are forked has one position, which all of them would move.
    """

    _reader: int | None = None

    def __getitem__(self, i: int) -> Tensor:
        if self._reader != os.getpid():
            self._reader, self.data_file = os.getpid(), None
        return super().__getitem__(i)


def load_tokens(
    prefix: Path, lang: str, dictionary: Dictionary, impl: str | None
) -> torch.utils.data.Dataset:
    """Binarised sentences, memory-mapped where the file allows.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    path = f"{prefix}{lang}"
    impl = str(impl or infer_dataset_impl(path))
    try:
        if impl in ("cached", "lazy"):  # stock's cache would have to be told which rows are read
            dataset = _SoughtDataset(path, fix_lua_indexing=True)
        else:
            dataset = data_utils.load_indexed_dataset(path, dictionary, impl)
    except (OSError, ValueError, AssertionError, EOFError, struct.error) as error:
        if getattr(error, "errno", None) == errno.EMFILE:
            raise UserError(f"{path}.idx: too many open files: raise `ulimit -n`") from None
        raise UserError(f"cannot read {path}.idx: {error}; run fairseq-preprocess again") from None
    if dataset is None or len(dataset) == 0:
        raise UserError(f"{path}.bin holds no sentences: run fairseq-preprocess again")
    return dataset


def prepend(dataset: torch.utils.data.Dataset, tokens: Sequence[int]) -> torch.utils.data.Dataset:
    """The dataset with tokens before each sentence."""
    for token in reversed(tokens):
        dataset = PrependTokenDataset(dataset, token)
    return dataset


@dataclass
class ParallelCorpus:
    """Sentence pairs of one direction; [langtok] tokens eos on both sides."""

    name: str
    source: torch.utils.data.Dataset
    target: torch.utils.data.Dataset

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):  # type: ignore[arg-type]
            raise UserError(
                f"{self.name}: {len(self.source)} source and "  # type: ignore[arg-type]
                f"{len(self.target)} target sentences; "  # type: ignore[arg-type]
                "binarise both sides from the same lines"
            )
        self.src_sizes = np.asarray(self.source.sizes)  # type: ignore[attr-defined]
        self.tgt_sizes = np.asarray(self.target.sizes)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.src_sizes)

    def start_epoch(self, epoch: int) -> None:
        """All epochs are alike."""

    def example(self, row: int, key: tuple[int, ...]) -> Example:
        return {"source": self.source[row], "target": self.target[row]}


@dataclass
class DenoisingCorpus:
    """Sentences of one language: the source is noised, the target is not.

    Attributes:
        tokens: sentences with eos and without language token.
        source_prefix, target_prefix: tokens to be prepended.
        strength: factor of the noise in each epoch; None for 1.
        pieces: see `Noise.apply`.
        mask, eos: indices of these symbols.
    """

    name: str
    tokens: torch.utils.data.Dataset
    noise: Noise
    pieces: WordPieces
    mask: int
    eos: int
    source_prefix: Sequence[int] = ()
    target_prefix: Sequence[int] = ()
    strength: Schedule | None = None

    def __post_init__(self) -> None:
        sizes = np.asarray(self.tokens.sizes)  # type: ignore[attr-defined]
        # Noise never lengthens a sentence.
        self.src_sizes = sizes + len(self.source_prefix)
        self.tgt_sizes = sizes + len(self.target_prefix)
        self.start_epoch(1)

    def __len__(self) -> int:
        return len(self.tgt_sizes)

    def start_epoch(self, epoch: int) -> None:
        strength = self.strength
        self._noise = self.noise if strength is None else self.noise.scaled(strength.at(epoch))

    def example(self, row: int, key: tuple[int, ...]) -> Example:
        body = _body(self.tokens, row, self.eos)
        noised = self._noise.apply(body, self.pieces, self.mask, np.random.default_rng(key))
        return {
            "source": _sentence(noised, self.source_prefix, self.eos),
            "target": _sentence(body, self.target_prefix, self.eos),
        }


@dataclass
class MaskedCorpus:
    """Sentences of one language; the target is padding but where a token is to be predicted.

    Attributes:
        tokens: sentences with eos and without language token.
        masking: which tokens are hidden.
        pieces, ordinary: see `Masking.apply`.
        mask, eos, pad: indices of these symbols.
        source_prefix: tokens to be prepended.
    """

    name: str
    tokens: torch.utils.data.Dataset
    masking: Masking
    pieces: WordPieces
    ordinary: np.ndarray
    mask: int
    eos: int
    pad: int
    source_prefix: Sequence[int] = ()

    def __post_init__(self) -> None:
        sizes = np.asarray(self.tokens.sizes)  # type: ignore[attr-defined]
        self.src_sizes = self.tgt_sizes = sizes + len(self.source_prefix)

    def __len__(self) -> int:
        return len(self.src_sizes)

    def start_epoch(self, epoch: int) -> None:
        """All epochs are alike."""

    def example(self, row: int, key: tuple[int, ...]) -> Example:
        body = _body(self.tokens, row, self.eos)
        hidden, chosen = self.masking.apply(
            body, self.pieces, self.ordinary, self.mask, np.random.default_rng(key)
        )
        source = _sentence(hidden, self.source_prefix, self.eos)
        target = torch.full_like(source, self.pad)
        start = len(source) - 1 - len(body)
        target[start:-1] = torch.from_numpy(np.where(chosen, body, self.pad))
        return {"source": source, "target": target}


def _body(tokens: torch.utils.data.Dataset, row: int, eos: int) -> np.ndarray:
    """int64 [N], a sentence without its end."""
    body: np.ndarray = tokens[row].numpy().astype(np.int64)
    return body[:-1] if len(body) and body[-1] == eos else body


def _sentence(body: np.ndarray, prefix: Sequence[int], eos: int) -> Tensor:
    return torch.from_numpy(np.concatenate((prefix, body, [eos])).astype(np.int64))


def ordinary_tokens(dictionary: Dictionary, extra: set[int]) -> np.ndarray:
    """int64, the tokens of text: all but the dictionary's own special ones and `extra`."""
    return np.array([i for i in range(dictionary.nspecial, len(dictionary)) if i not in extra])

"""Batches that hold a part for each objective."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset, data_utils

from zcode_plugin.data.corpora import Corpus, Example
from zcode_plugin.data.sampling import Temperature, draw_rows, split_total, temperature_ratios
from zcode_plugin.errors import UserError, exits_on_user_error

logger = logging.getLogger(__name__)

# An index says which objective, which repetition within the epoch, and which example: a repeated
# example gets fresh noise.
_OBJECTIVE_SHIFT, _REPEAT_SHIFT = 48, 32
_ROW_MASK = (1 << _REPEAT_SHIFT) - 1
_REPEAT_MASK = (1 << (_OBJECTIVE_SHIFT - _REPEAT_SHIFT)) - 1  # after so many the noise returns


@dataclass
class Stream:
    """All corpora of one objective, and the examples of the current epoch drawn from them.

    Attributes:
        name: the objective.
        corpora: one for each direction or language.
        temperature: of the sampling; None takes every row once, in order.
        max_tokens: tokens of a batch; None for the run's `--max-tokens`.
        weights: factors of the shares of corpora, by name; 1 where none is given.
    """

    name: str
    corpora: Sequence[Corpus]
    temperature: Temperature | None
    max_tokens: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    corpus_of: np.ndarray = field(init=False)
    row_of: np.ndarray = field(init=False)
    src_sizes: np.ndarray = field(init=False)
    tgt_sizes: np.ndarray = field(init=False)

    def draw(self, seed: int, epoch: int) -> None:
        """Draw the examples of an epoch: as many as the corpora hold together."""
        for corpus in self.corpora:
            corpus.start_epoch(epoch)
        sizes = [len(corpus) for corpus in self.corpora]
        counts = np.array(sizes)
        if self.temperature is not None:
            weights = [self.weights.get(corpus.name, 1.0) for corpus in self.corpora]
            ratios = temperature_ratios(sizes, self.temperature.at(epoch), weights)
            counts = split_total(sum(sizes), ratios)
        rows = [
            draw_rows(size, int(count), np.random.default_rng((seed, epoch, number)))
            for number, (size, count) in enumerate(zip(sizes, counts, strict=True))
        ]
        self.row_of = np.concatenate(rows)
        self.corpus_of = np.repeat(np.arange(len(rows)), counts)
        self.src_sizes = self._gather("src_sizes", rows)
        self.tgt_sizes = self._gather("tgt_sizes", rows)

    def _gather(self, name: str, rows: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(
            [getattr(corpus, name)[part] for corpus, part in zip(self.corpora, rows, strict=True)]
        )

    def corpus(self, index: int) -> Corpus:
        """Where an example of the epoch is from."""
        return self.corpora[self.corpus_of[index]]

    def example(self, index: int, key: tuple[int, ...]) -> Example:
        return self.corpus(index).example(int(self.row_of[index]), (*key, index))


class MultitaskDataset(FairseqDataset):
    """Examples of several objectives; a training batch holds a part of each.

    A collated batch maps the name of each objective in it to a batch as fairseq's
    `LanguagePairDataset` collates it, in the fixed order of the objectives, with one more entry:
    `corpora`, the name of each sentence's corpus. A rank that has no batch where others have one
    gets batches without targets, in validation one of the first objective.

    Args:
        streams: one for each objective, in the fixed order; the first one's size is the epoch's.
        collate: makes a batch of an objective from a list of examples.
        empty: makes a batch of an objective without targets.
        seed: of sampling, shuffling and noise, together with the epoch.
        joint: True for training. With False (validation) a batch is of one objective; those of all
            are spread evenly, so that the first ones hold a part of each.
        ranks: those that validate together.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        collate: Callable[[str, list[dict[str, Any]]], dict[str, Any]],
        empty: Callable[[str], dict[str, Any]],
        *,
        seed: int,
        joint: bool,
        ranks: int = 1,
    ):
        super().__init__()
        self.streams = list(streams)
        self.collate = collate
        self.empty = empty
        self.seed = seed
        self.joint = joint
        self.ranks = ranks
        self.epoch = 0
        self.set_epoch(1)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return not self.joint

    def set_epoch(self, epoch: int) -> None:
        """Draw the examples of an epoch; the same ones whenever it is the same epoch."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        for number, stream in enumerate(self.streams):
            stream.draw(self.seed + number, epoch)

    def __len__(self) -> int:
        return sum(len(stream.row_of) for stream in self.streams)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, repeat, row = _unpack(int(index))
        key = (self.seed, self.epoch, number, repeat)
        return {"id": row, "objective": number, **self.streams[number].example(row, key)}

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        if not samples:
            streams = self.streams if self.joint else self.streams[:1]
            return {stream.name: self.empty_batch(stream.name) for stream in streams}
        batches = {}
        for number, stream in enumerate(self.streams):
            part = [sample for sample in samples if sample["objective"] == number]
            if part:
                batch = batches[stream.name] = self.collate(stream.name, part)
                batch["corpora"] = [stream.corpus(row).name for row in batch["id"].tolist()]
        return batches

    def empty_batch(self, objective: str) -> dict[str, Any]:
        """A batch of an objective without targets, of no corpus."""
        return {**self.empty(objective), "corpora": []}

    def size(self, index: int) -> tuple[int, int]:
        number, _, row = _unpack(int(index))
        stream = self.streams[number]
        return int(stream.src_sizes[row]), int(stream.tgt_sizes[row])

    def place(self, index: int) -> tuple[str, int]:
        """The objective and the corpus of an example, `mt de-en`, and its row there."""
        number, _, row = _unpack(int(index))
        stream = self.streams[number]
        return f"{stream.name} {stream.corpus(row).name}", int(stream.row_of[row])

    def num_tokens(self, index: int) -> int:
        return max(self.size(index))

    @property
    def supports_prefetch(self) -> bool:
        return False

    def ordered_indices(self) -> np.ndarray:
        """Objective by objective, short sentences first, equal ones in random order."""
        parts = []
        for number, stream in enumerate(self.streams):
            order = np.random.default_rng((self.seed, self.epoch, number)).permutation(
                len(stream.row_of)
            )
            order = order[np.argsort(stream.tgt_sizes[order], kind="stable")]
            order = order[np.argsort(stream.src_sizes[order], kind="stable")]
            parts.append(order + (number << _OBJECTIVE_SHIFT))
        return np.concatenate(parts)

    def filter_indices_by_size(
        self, indices: np.ndarray, max_sizes: Any
    ) -> tuple[np.ndarray, list[int]]:
        """Split into those within `max_sizes` (source, target) and those beyond."""
        if max_sizes is None:
            return indices, []
        longest = max_sizes if isinstance(max_sizes, (tuple, list)) else (max_sizes, max_sizes)
        keep = np.ones(len(indices), dtype=bool)
        for number, stream in enumerate(self.streams):
            mine = indices >> _OBJECTIVE_SHIFT == number
            rows = indices[mine] & _ROW_MASK
            keep[mine] = (stream.src_sizes[rows] <= longest[0]) & (
                stream.tgt_sizes[rows] <= longest[1]
            )
        return indices[keep], indices[~keep].tolist()

    @exits_on_user_error
    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Batches of each objective within the limits; joint ones side by side.

        The first objective's batches make the epoch; those of the others are repeated or cut.
        """
        per_objective = []
        for number, stream in enumerate(self.streams):
            mine = indices[indices >> _OBJECTIVE_SHIFT == number]
            rows = mine & _ROW_MASK
            lengths = np.maximum(stream.src_sizes[rows], stream.tgt_sizes[rows]).astype(np.int64)
            limit = stream.max_tokens if self.joint and stream.max_tokens else max_tokens
            if limit is not None and len(lengths) and lengths.max() > limit:
                logger.warning(
                    "%d sentences of %s are longer than a batch of %d tokens and left out",
                    int((lengths > limit).sum()),
                    stream.name,
                    limit,
                )
                mine, lengths = mine[lengths <= limit], lengths[lengths <= limit]
            places = data_utils.batch_by_size(
                np.arange(len(mine), dtype=np.int64),
                num_tokens_fn=None,
                num_tokens_vec=lengths,
                max_tokens=limit,
                max_sentences=max_sentences,
                required_batch_size_multiple=required_batch_size_multiple,
            )
            per_objective.append([mine[place] for place in places])
        if not self.joint:
            return _in_proportion(per_objective, self.ranks)
        return self._side_by_side(per_objective)

    def _side_by_side(self, per_objective: list[list[np.ndarray]]) -> list[np.ndarray]:
        length = len(per_objective[0])
        columns = []
        for number, batches in enumerate(per_objective):
            if not batches:
                raise UserError(
                    f"no sentence of {self.streams[number].name} fits a batch: raise --max-tokens, "
                    "or its --multitask-max-tokens"
                )
            # By its own draws an objective keeps its order, whatever others stand beside it.
            rng = np.random.default_rng((self.seed, self.epoch, number + 1))
            order = rng.permutation(len(batches))
            columns.append(
                [
                    batches[order[step % len(batches)]]
                    + ((step // len(batches) & _REPEAT_MASK) << _REPEAT_SHIFT)
                    for step in range(length)
                ]
            )
        return [np.concatenate(parts) for parts in zip(*columns, strict=True)]


def _in_proportion(per_objective: list[list[np.ndarray]], ranks: int) -> list[np.ndarray]:
    """All batches, those of each objective in their order and evenly over the whole.

    Each rank takes one of `ranks` that follow each other: they are of one objective as far as can
    be, for a rank whose batch is of another has to wait for it.
    """
    placed = [
        ((2 * (place // ranks) + 1) / math.ceil(len(batches) / ranks), number, place)
        for number, batches in enumerate(per_objective)
        for place in range(len(batches))
    ]
    return [per_objective[number][place] for _, number, place in sorted(placed)]


def _unpack(index: int) -> tuple[int, int, int]:
    """(objective, repetition, example) of an index."""
    return index >> _OBJECTIVE_SHIFT, index >> _REPEAT_SHIFT & _REPEAT_MASK, index & _ROW_MASK

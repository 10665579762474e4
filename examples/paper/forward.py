"""Checkpoints applied to a part of the data, without translating."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from fairseq import checkpoint_utils
from torch import Tensor

from zcode_plugin import register
from zcode_plugin.data.pairs import Pair
from zcode_plugin.data.symbols import SPACE


def load(checkpoint: Path, data: Path, split: str) -> tuple[torch.nn.Module, Any]:
    """The model, for evaluation, and its task with that part of the data loaded."""
    register()
    [model], _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], {"data": str(data)}
    )
    task.load_dataset(split)
    return model.eval(), task


def batches(task: Any, split: str) -> Iterator[dict[str, Any]]:
    """Of translations, in the order of the data."""
    iterator = task.get_batch_iterator(task.dataset(split), max_tokens=4096)
    for sample in iterator.next_epoch_itr(shuffle=False):
        yield from sample.values()


@torch.no_grad()
def losses_of_pieces(checkpoint: Path, data: Path, split: str) -> dict[tuple[str, str], float]:
    """Bits per target of the pieces that begin a word, and of those inside one."""
    model: Any
    model, task = load(checkpoint, data, split)
    dictionary = task.target_dictionary
    means = MeansOfPieces()
    for batch in batches(task, split):
        log_probs = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True)
        right = log_probs.gather(-1, batch["target"].unsqueeze(-1)).squeeze(-1)
        for row, corpus in enumerate(batch["corpora"]):
            target = batch["target"][row]
            real = of_words(target, dictionary.nspecial, task.language_tokens)
            pieces = [dictionary[piece] for piece in target[real].tolist()]
            means.add(corpus, pieces, (-right[row][real] / log(2)).tolist())
    return means.by_kind()


def of_words(target: Tensor, nspecial: int, language_tokens: Collection[int]) -> Tensor:
    """bool, as `target`: which are pieces of words, rather than padding, ends or languages."""
    langtoks = torch.tensor(sorted(language_tokens))
    return (target >= nspecial) & ~torch.isin(target, langtoks)


class MeansOfPieces:
    """Mean losses by group of directions, as `Pair.group`, and kind, `first` or `inside`."""

    def __init__(self) -> None:
        self._losses: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, direction: str, pieces: Sequence[str], losses: Sequence[float]) -> None:
        """One sentence, without its end."""
        group = Pair.parse(direction).group
        for piece, loss in zip(pieces, losses, strict=True):
            kind = "first" if piece.startswith(SPACE) else "inside"
            self._losses[group, kind].append(loss)

    def by_kind(self) -> dict[tuple[str, str], float]:
        """Of those that there are."""
        return {key: fmean(losses) for key, losses in self._losses.items()}

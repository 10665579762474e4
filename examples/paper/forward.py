"""Checkpoints applied to a part of the data, without translating."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from fairseq import checkpoint_utils
from torch import Tensor

from zcode_plugin import register

START_OF_WORD = "\u2581"  # SentencePiece's


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
    """Bits per target of the pieces that begin a word and of those inside one.

    Returns:
        By group of directions, `X->en` or `en->X`, and kind of piece, `first` or `inside`.
    """
    model, task = load(checkpoint, data, split)
    symbols = task.target_dictionary.symbols
    is_first_V = torch.tensor([symbol.startswith(START_OF_WORD) for symbol in symbols])
    special = torch.arange(len(symbols)) < task.target_dictionary.nspecial
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for batch in batches(task, split):
        bits = _bits(model, batch)
        for row, corpus in enumerate(batch["corpora"]):
            group = "X->en" if corpus.endswith("-en") else "en->X"
            target = batch["target"][row]
            for kind, wanted_V in (("first", is_first_V), ("inside", ~is_first_V & ~special)):
                found[group, kind] += bits[row][wanted_V[target]].tolist()
    return {key: fmean(values) for key, values in found.items()}


def _bits(model: Any, batch: dict[str, Any]) -> Tensor:
    """[sentences, length], of the right piece after the right ones before it."""
    log_probs = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True)
    return -log_probs.gather(-1, batch["target"].unsqueeze(-1)).squeeze(-1) / log(2)

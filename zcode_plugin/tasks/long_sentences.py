"""Sentences that are longer than the model's positions: told by corpus, as users know them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from zcode_plugin.data.multitask_dataset import MultitaskDataset
from zcode_plugin.errors import UserError

logger = logging.getLogger(__name__)
SKIPS = "--skip-invalid-size-inputs-valid-test"


def without_long(
    dataset: MultitaskDataset,
    indices: np.ndarray,
    limits: tuple[int, int],
    skips: bool,
) -> np.ndarray:
    """The indices of sentences within the limits.

    Args:
        dataset: holds the sentences.
        indices: of it.
        limits: the most tokens of a source and of a target.
        skips: leave longer ones out with a warning.

    Raises:
        UserError: there are longer ones, and they are not to be left out.
    """
    kept, long = dataset.filter_indices_by_size(indices, limits)
    if not long:
        return kept
    told = _told(dataset, long, limits)
    if not skips:
        raise UserError(f"{told}: raise them, or leave the sentences out with {SKIPS}")
    logger.warning("%s, left out", told)
    return kept


def _told(dataset: MultitaskDataset, long: Sequence[int], limits: tuple[int, int]) -> str:
    counts = Counter(dataset.place(index)[0] for index in long)
    corpus, row = dataset.place(long[0])
    each = ", ".join(f"{name}: {count}" for name, count in counts.items())
    source, target = dataset.size(long[0])
    return (
        f"{len(long)} sentences ({each}; for example number {row + 1} of {corpus}, {source} and "
        f"{target} tokens) are longer than --max-source-positions {limits[0]} and "
        f"--max-target-positions {limits[1]}"
    )

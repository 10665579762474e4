"""How often each corpus is seen: temperature sampling without copies of any data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Temperature:
    """The temperature of each epoch: from `start` linearly to `end`, which epoch `epochs` has.

    A temperature that rises as training goes on first lets large corpora teach what all share.
    """

    start: float
    end: float | None = None
    epochs: int = 1

    def at(self, epoch: int) -> float:
        """Of an epoch; the first is 1."""
        if self.end is None:
            return self.start
        done = min(1.0, (epoch - 1) / max(1, self.epochs - 1))
        return self.start + done * (self.end - self.start)


def temperature_ratios(
    sizes: Sequence[int], temperature: float, weights: Sequence[float] | None = None
) -> np.ndarray:
    """Shares proportional to weight x size^(1/T).

    T = 1 keeps the sizes' proportions, greater T levels. Without `weights` each is 1.
    """
    shares = np.asarray(sizes, dtype=np.float64) ** (1.0 / temperature)
    if weights is not None:
        shares = shares * np.asarray(weights)
    return shares / shares.sum()


def split_total(total: int, ratios: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to `total` and follow the ratios (largest remainders)."""
    exact = total * ratios
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def draw_rows(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` rows out of `size`: whole passes, then a random part without repetition.

    So that each row is drawn floor or ceil of count / size times.
    """
    passes, rest = divmod(count, size)
    parts = [np.arange(size)] * passes
    if rest:
        parts.append(rng.permutation(size)[:rest])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

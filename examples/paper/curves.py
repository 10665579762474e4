"""Validation curves of runs, and when one run gets to where another ended."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from trainings import Point

Curves = list[list[Point]]  # of each seed


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of a single value."""
    return stdev(values) if len(values) > 1 else None


def reaching(curve: Sequence[Point], loss: float) -> Point | None:
    """Where a curve first is at a loss, between validations on a straight line; None: nowhere."""
    before: Point | None = None
    for point in curve:
        if point.loss <= loss:
            return point if before is None else _between(before, point, loss)
        before = point
    return None


def _between(before: Point, after: Point, loss: float) -> Point:
    share = (before.loss - loss) / (before.loss - after.loss)
    updates = before.updates + share * (after.updates - before.updates)
    return Point(round(updates), before.seconds + share * (after.seconds - before.seconds), loss)


def speedup(curves: Curves, baseline: Curves) -> tuple[float | None, float | None]:
    """Updates, and seconds, of the baseline over those of a model that reaches its final loss.

    Args:
        curves: of the model, seed by seed.
        baseline: of the other, of the same seeds or more.

    Returns:
        Those of the mean curves; None where the model's does not get there.
    """
    own, other = mean(curves), mean(baseline[: len(curves)])
    there = reaching(own, other[-1].loss)
    if there is None:
        return None, None
    return other[-1].updates / there.updates, other[-1].seconds / there.seconds


def mean(curves: Curves) -> list[Point]:
    """Mean time and loss at each update, of curves with the same updates."""
    return [
        Point(at[0].updates, fmean(p.seconds for p in at), fmean(p.loss for p in at))
        for at in zip(*curves, strict=True)
    ]


def final(curves: Curves) -> float:
    """The last validation loss, mean over seeds."""
    return mean(curves)[-1].loss


def differences(curves: Curves, baseline: Curves) -> list[list[float]]:
    """Losses less those of another model of equal seed: seed by seed, at each validation."""
    pairs = zip(curves, baseline, strict=True)
    return [[a.loss - b.loss for a, b in zip(one, other, strict=True)] for one, other in pairs]

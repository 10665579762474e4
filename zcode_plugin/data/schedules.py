"""Values that change as training goes on: `0@0,1@4000`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zcode_plugin.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Linear between milestones, level outside.

    Attributes:
        milestones: (step, value), at least one, steps ascending.
    """

    milestones: tuple[tuple[int, float], ...]

    def at(self, step: int) -> float:
        """The value at a step."""
        steps, values = zip(*self.milestones, strict=True)
        return float(np.interp(step, steps, values))


def parse_schedule(items: Sequence[str], where: str, form: str, of: str = "") -> Schedule:
    """`["0@0", "1@4000"]` -> a schedule of values that are not negative.

    Args:
        items: each VALUE@STEP.
        where: the flag and its value, for errors.
        form: what each item should be, for errors: `WEIGHT@UPDATE such as 0.5@4000`.
        of: what the schedule is of, for errors.

    Raises:
        UserError: an item of another form, or steps that do not ascend.
    """
    found = []
    for item in items:
        value, _, step = item.partition("@")
        if not (step.isdecimal() and 0 <= number(value) < math.inf):
            raise UserError(f"{where}: {item!r}{of} is no {form}")
        found.append((int(step), float(value)))
    if any(left >= right for (left, _), (right, _) in pairwise(found)):
        unit = form.partition("@")[2].partition(" ")[0].lower()
        raise UserError(f"{where}: the {unit}s{of} must ascend")
    return Schedule(tuple(found))


def number(text: str) -> float:
    """The number, or NaN where the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan

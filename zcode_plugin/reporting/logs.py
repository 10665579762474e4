"""Training logs in JSON, as stock fairseq writes them with `--log-format json`.

Stock prints a record of the last updates every `--log-interval` (`{"epoch": 1, "update": 0.5,
"mt_loss": "7.1", ...}`), one of each epoch with `train_` before every name, and one of each
validation with the split's name before every name. On standard output a line has the time before
the record; in `--log-file` the record stands alone. Whatever else a line holds is ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from zcode_plugin.data.objectives import KNOWN
from zcode_plugin.errors import UserError

TRAIN, EPOCH = "train_inner", "train"
_START = re.compile(r'\{"epoch": ')
_UPDATES = "num_updates"
# Walls of ranks that log the same update differ by no more than this, in seconds.
_SAME_WALL = 2.0


class Curve(NamedTuple):
    """A metric over updates; values may be NaN or infinite where training was."""

    updates: list[int]
    values: list[float]


@dataclass
class TrainingLog:
    """What the logs of a run say, the last word on every update.

    A run that was resumed goes back to its checkpoint: what it had logged beyond is forgotten.

    Attributes:
        points: by split (`TRAIN`, `EPOCH`, or of validation, such as `valid`) and updates, the
            metrics by name.
        seconds: time since the start of training by updates, of `TRAIN`; resumed runs go on from
            the time of the last update that is kept.
        damaged: records that were cut off or had no number of updates.
        restarts: how often the run was resumed.
    """

    points: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    damaged: int = 0
    restarts: int = 0
    _wall: float = 0.0
    _offset: float = 0.0
    _clock_stands: bool = False

    @property
    def training(self) -> str:
        """The split of training curves: `TRAIN`, or `EPOCH` where no interval was logged."""
        return TRAIN if self.points.get(TRAIN) else EPOCH

    @property
    def validations(self) -> list[str]:
        """Names of the validation splits."""
        return [split for split in self.points if split not in (TRAIN, EPOCH)]

    @property
    def updates(self) -> int:
        """The last update of which anything was logged."""
        return max((max(points) for points in self.points.values() if points), default=0)

    def names(self, split: str) -> list[str]:
        """Metrics of a split, in the order in which they first came."""
        points = self.points.get(split, {}).values()
        return list(dict.fromkeys(name for point in points for name in point))

    def objectives(self) -> list[str]:
        """Objectives whose loss was logged."""
        names = {name for split in self.points for name in self.names(split)}
        return [name for name in KNOWN if f"{name}_nll_loss" in names]

    def corpora(self, objective: str) -> list[str]:
        """Directions or languages of an objective whose validation loss was logged."""
        start = f"{objective}_nll_loss_"
        found = {
            name.removeprefix(start)
            for split in self.validations
            for name in self.names(split)
            if name.startswith(start)
        }
        return sorted(found)

    def curve(self, split: str, name: str) -> Curve:
        """A metric over updates, ascending; empty where it was not logged."""
        points = sorted(self.points.get(split, {}).items())
        known = [(updates, point[name]) for updates, point in points if name in point]
        return Curve([updates for updates, _ in known], [value for _, value in known])

    def seconds_at(self, updates: Iterable[int]) -> list[float]:
        """Time since the start of training; between logged updates a straight line."""
        import numpy as np

        known = sorted(self.seconds.items())
        steps, seconds = zip(*known, strict=True)
        return list(map(float, np.interp(list(updates), steps, seconds)))

    def add(self, record: dict[str, Any]) -> None:
        """Take in a record; later ones win."""
        split, values = _sorted_out(record)
        count = values.pop(_UPDATES, math.nan)
        if split is None or not math.isfinite(count):
            self.damaged += 1
            return
        updates = int(count)
        if split == TRAIN:
            self._follow_time(updates, values)
        self.points.setdefault(split, {})[updates] = values

    def _follow_time(self, updates: int, values: dict[str, float]) -> None:
        known = self.points.get(TRAIN, {})
        wall, last = values.get("wall"), max(known, default=0)
        if wall is None:
            if updates < last:
                self._restart(updates)
            return
        if updates in known and _is_same(known[updates], values):
            return  # another rank, or another file, says the same
        if updates < last or wall < self._wall or (self._clock_stands and wall > 0):
            self._restart(updates)
        # Stock's clock stands still in a run that was resumed within an epoch.
        self._clock_stands = wall == 0 and self.restarts > 0
        self._wall = wall
        if self._clock_stands:
            self.seconds[updates] = self._last_second() + values.get("train_wall", 0.0)
        else:
            self.seconds[updates] = self._offset + wall

    def _restart(self, updates: int) -> None:
        self.restarts += 1
        known: list[dict[int, Any]] = [*self.points.values(), self.seconds]
        for points in known:
            for later in [key for key in points if key >= updates]:
                del points[later]
        self._offset = self._last_second()

    def _last_second(self) -> float:
        return self.seconds[max(self.seconds)] if self.seconds else 0.0


def _is_same(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two records of as many updates are of one and the same update."""
    walls = abs(one.get("wall", math.inf) - other["wall"])
    return walls <= _SAME_WALL and one.get("loss") == other.get("loss")


def _sorted_out(record: dict[str, Any]) -> tuple[str | None, dict[str, float]]:
    """The split, and the numbers without its name before theirs; None where it cannot be told."""
    if "update" in record:
        return TRAIN, _numbers(record)
    split = next((k.removesuffix(f"_{_UPDATES}") for k in record if k.endswith(_UPDATES)), None)
    if split is None:
        return None, {}
    start = f"{split}_"
    return split, _numbers({k.removeprefix(start): v for k, v in record.items()})


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """Stock writes most numbers as strings, with six digits."""
    numbers = {}
    for name, value in record.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers


def _records(line: str) -> Iterator[dict[str, Any] | None]:
    """The records in a line; None for one that is cut off."""
    for match in _START.finditer(line):
        try:
            record, _ = json.JSONDecoder().raw_decode(line, match.start())
        except ValueError:
            record = None
        yield record if isinstance(record, dict) else None


def _read(path: Path) -> Iterator[dict[str, Any] | None]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                yield from _records(line)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def holds_record(path: Path) -> bool:
    """Whether a file has a record that is not cut off.

    Raises:
        UserError: it cannot be read.
    """
    return any(record is not None for record in _read(path))


def read_logs(paths: Iterable[Path]) -> TrainingLog | None:
    """What the files of one run say, in the order in which they were written; None if nothing.

    Raises:
        UserError: a file cannot be read.
    """
    log = TrainingLog()
    seen: set[tuple[Any, ...]] = set()
    for path in paths:
        records = list(_read(path))
        moments = {tuple(map(one.get, (_UPDATES, "wall", "loss"))) for one in records
                   if one and "wall" in one and _UPDATES in one}  # fmt: skip
        if moments and moments <= seen:
            continue  # the same output in another file, as of --log-file and standard output
        seen |= moments
        for record in records:
            if record is None:
                log.damaged += 1
            else:
                log.add(record)
    return log if any(log.points.values()) else None

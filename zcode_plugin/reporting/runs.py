"""What a run left in its folder: logs, statistics of experts, scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint.statistics import FORMAT, ExpertStatistics, read_statistics
from zcode_plugin.errors import UserError
from zcode_plugin.reporting.logs import TrainingLog, holds_record, read_logs

LOG_PATTERNS = ("*.log", "*.out")


@dataclass(frozen=True)
class Evaluation:
    """What `zcode evaluate` wrote.

    Attributes:
        record: all of it.
        directions: a part of it: by name, their scores, with signatures.
    """

    record: Mapping[str, Any]
    directions: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """A run, as far as its folder tells.

    Attributes:
        name: of the folder, with as many of those above as tell it from the other runs.
        files: what was read.
        notes: of files that were passed over, one line each.
    """

    name: str
    folder: Path
    log: TrainingLog | None = None
    statistics: ExpertStatistics | None = None
    evaluation: Evaluation | None = None
    files: Sequence[Path] = ()
    notes: Sequence[str] = ()


@dataclass
class _Found:
    """Files of a folder by what they are."""

    statistics: list[tuple[Path, ExpertStatistics]] = field(default_factory=list)
    evaluations: list[tuple[Path, Evaluation]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_runs(folders: Sequence[Path], logs: Sequence[Path] = ()) -> list[Run]:
    """Read the folders of runs.

    Args:
        folders: one for each run.
        logs: those of the only run, in the order in which they were written; by default all
            `LOG_PATTERNS` in its folder that hold a record in JSON.

    Raises:
        UserError: no such folder, nothing in it to report, or a log without a record.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("the same RUN_DIR is named twice")
    return [
        _read_run(folder, name, logs) for folder, name in zip(folders, _names(folders), strict=True)
    ]


def _read_run(folder: Path, name: str, logs: Sequence[Path]) -> Run:
    found = _sort_out(folder)
    used = [path for path in logs or _logs_of(folder) if _has_record(path, found.notes)]
    if logs and not used:
        raise UserError(found.notes[-1])
    log = read_logs(used)
    statistics = _newest(found.statistics, found.notes)
    evaluation = _newest(found.evaluations, found.notes)
    if log is None and statistics is None and evaluation is None:
        raise UserError(
            f"{folder} holds nothing to report: train with --log-format json --log-file "
            f"{folder}/train.log" + "".join(f" ({note})" for note in found.notes[:1])
        )
    return Run(
        name,
        folder,
        log,
        statistics and statistics[1],
        evaluation and evaluation[1],
        [*used, *(found_file[0] for found_file in (statistics, evaluation) if found_file)],
        found.notes,
    )


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("resolved paths differ")


def _logs_of(folder: Path) -> list[Path]:
    found = {path for pattern in LOG_PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return sorted(found, key=lambda path: (path.stat().st_mtime, path.name))


def _has_record(path: Path, notes: list[str]) -> bool:
    if holds_record(path):
        return True
    notes.append(f"{path} has no record in JSON: train with --log-format json")
    return False


def _sort_out(folder: Path) -> _Found:
    found = _Found()
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found.notes.append(f"{path} is damaged: it holds no JSON")
            continue
        if not isinstance(record, dict):
            continue
        if record.get("format") == FORMAT:
            try:
                found.statistics.append((path, read_statistics(path)))
            except UserError as error:
                found.notes.append(str(error))
        elif evaluation := _evaluation(record):
            found.evaluations.append((path, evaluation))
    return found


def _evaluation(record: Mapping[str, Any]) -> Evaluation | None:
    directions, means = record.get("directions"), record.get("means")
    if not isinstance(directions, dict) or not isinstance(means, dict) or not directions:
        return None
    entries = [*directions.values(), *means.values()]
    return Evaluation(record, directions) if all(map(_has_scores, entries)) else None


def _has_scores(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), (int, float)) for name in ("bleu", "chrf")
    )


def _newest(found: list[tuple[Path, Any]], notes: list[str]) -> tuple[Path, Any] | None:
    """The file that was written last; the others are noted."""
    if not found:
        return None
    newest = max(found, key=lambda item: (item[0].stat().st_mtime, item[0].name))
    notes += [f"{path} is older than {newest[0]}" for path, _ in found if path != newest[0]]
    return newest

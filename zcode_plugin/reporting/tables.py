"""Tables of a report: runs at a glance, scores by direction, load by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from zcode_plugin.checkpoint.statistics import LayerLoad
from zcode_plugin.data.pairs import Pair
from zcode_plugin.evaluation.scores import METRICS, by_group, in_order, shown, signature_lines
from zcode_plugin.reporting.charts import OBJECTIVES, typical
from zcode_plugin.reporting.logs import TrainingLog
from zcode_plugin.reporting.runs import Evaluation, Run

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """Cells of text.

    Attributes:
        header: of the columns.
        rows: as long as the header.
        strong: numbers of rows that sum up others.
        notes: lines below.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()
    notes: Sequence[str] = ()


def overview(runs: Sequence[Run]) -> Table:
    """The runs at a glance, one in each column; what none of them has is left out."""
    evaluations = [run.evaluation for run in runs if run.evaluation is not None]
    shared, left_out = _shared(evaluations)
    facts = [_facts(run, shared) for run in runs]
    names = dict.fromkeys(name for fact in facts for name in fact)
    rows = [[name, *(fact.get(name, NONE) for fact in facts)] for name in names]
    return Table(["", *(run.name for run in runs)], rows, notes=_left_out(left_out))


def _facts(run: Run, directions: Sequence[Pair]) -> dict[str, str]:
    facts = {} if run.log is None else _training_facts(run.log)
    if run.evaluation is not None:
        for metric, name in METRICS.items():
            mean = _mean(run.evaluation, directions, metric)
            if mean is not None:
                facts[f"mean {name}, {run.evaluation.record.get('subset', '')}"] = shown(
                    metric, mean
                )
    if run.statistics is not None:
        layers = run.statistics.layers()
        facts["experts"] = ", ".join(dict.fromkeys(str(load.experts) for load in layers))
        facts["layers with experts"] = str(len(layers))
    return facts


def _training_facts(log: TrainingLog) -> dict[str, str]:
    facts = {"updates": f"{log.updates:,}"}
    if log.seconds:
        facts["time of training"] = duration(max(log.seconds.values()))
    for split in log.validations:
        for objective in OBJECTIVES:
            curve = log.curve(split, f"{objective}_nll_loss")
            finite = [
                pair for pair in zip(curve.values, curve.updates, strict=True) if _is_finite(pair)
            ]
            if finite:
                value, updates = min(finite)
                facts[f"lowest {objective} loss, {split} (bits per target)"] = (
                    f"{value:.3f} (update {updates:,})"
                )
    speed = typical(log.curve(log.training, "wps"))
    if speed is not None:
        facts["typical speed (target tokens per second)"] = f"{speed:,.0f}"
    dropped = log.curve(log.training, "overflow_expert1").values
    if dropped:
        facts["dropped tokens, last logged"] = f"{dropped[-1]:.2f} %"
    wild = sum(not math.isfinite(value) for value in log.curve(log.training, "gnorm").values)
    if wild:
        facts["intervals with an infinite or undefined gradient norm"] = str(wild)
    if log.restarts:
        facts["resumed"] = f"{log.restarts} x"
    return facts


def _is_finite(pair: tuple[float, int]) -> bool:
    return math.isfinite(pair[0])


def duration(seconds: float) -> str:
    """`48 s`, `6.7 min`, `5.2 h`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def score_table(runs: Sequence[Run]) -> Table | None:
    """Scores by direction, with means over those that all runs have below; None without any."""
    scored = [(run.name, run.evaluation) for run in runs if run.evaluation is not None]
    if not scored:
        return None
    columns = [
        (metric, name, evaluation)
        for metric in METRICS
        for name, evaluation in scored
        if any(entry.get(metric) is not None for entry in evaluation.directions.values())
    ]
    single = len(scored) == 1
    header = [
        METRICS[metric] if single else f"{METRICS[metric]}, {name}" for metric, name, _ in columns
    ]
    shared, left_out = _shared([evaluation for _, evaluation in scored])
    directions = in_order([*shared, *left_out])
    rows = []
    for name in map(str, directions):
        entries = [e.directions.get(name, {}) for _, e in scored]
        sentences = next((str(e["sentences"]) for e in entries if "sentences" in e), NONE)
        cells = [_cell(metric, e.directions.get(name, {}).get(metric)) for metric, _, e in columns]
        rows.append([name, sentences, *cells])
    for group, members in by_group(shared).items() if shared else ():
        cells = [_cell(metric, _mean(e, members, metric)) for metric, _, e in columns]
        rows.append([f"mean {group}", f"{len(members)} dir.", *cells])
    strong = frozenset(range(len(directions), len(rows)))
    notes = [note for name, e in scored for note in _notes(e, "" if single else f"{name}: ")]
    notes = [*_other_data(scored, shared), *_left_out(left_out), *dict.fromkeys(notes)]
    return Table(["direction", "sentences", *header], rows, strong, notes)


def _other_data(scored: Sequence[tuple[str, Evaluation]], shared: Sequence[Pair]) -> list[str]:
    """A warning where scores of a direction are not of the same sentences."""

    def data(evaluation: Evaluation) -> list[object]:
        entries = [evaluation.directions[str(direction)] for direction in shared]
        return [evaluation.record.get("subset"), *(entry.get("references") for entry in entries)]

    first = data(scored[0][1])
    others = [name for name, evaluation in scored[1:] if data(evaluation) != first]
    if not others:
        return []
    return [f"Not to be compared: {', '.join(others)} scored other sentences than {scored[0][0]}"]


def _shared(evaluations: Sequence[Evaluation]) -> tuple[list[Pair], list[Pair]]:
    """Directions that all have, over which means can be compared; and the others."""
    every = dict.fromkeys(name for one in evaluations for name in one.directions)
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for name in every:
        src, _, tgt = name.partition("-")
        lacks = any(name not in one.directions for one in evaluations)
        parts[lacks].append(Pair(src, tgt))
    return parts


def _left_out(directions: Sequence[Pair]) -> list[str]:
    names = ", ".join(map(str, in_order(directions)))
    return [f"Not in the means, as not all runs have it: {names}"] if names else []


def _mean(evaluation: Evaluation, directions: Sequence[Pair], metric: str) -> float | None:
    """Unweighted; None where one of them has no such score."""
    found = [evaluation.directions[str(direction)].get(metric) for direction in directions]
    values = [value for value in found if value is not None]
    return fmean(values) if values and len(values) == len(found) else None


def _cell(metric: str, value: float | None) -> str:
    return NONE if value is None else shown(metric, value)


def _notes(evaluation: Evaluation, start: str) -> list[str]:
    record = evaluation.record
    notes = [
        f"{start}{record.get('checkpoint')}, {record.get('updates')} updates, split "
        f"{record.get('subset')}, {record.get('date')}"
    ]
    return notes + signature_lines(evaluation.directions)


def load_table(runs: Sequence[Run]) -> Table | None:
    """Load of each layer with experts; None without statistics."""
    rows, notes = [], []
    for run in runs:
        if run.statistics is None:
            continue
        start = [run.name] * (len(runs) > 1)
        origin = run.statistics.origin
        factor = float(origin.get("capacity_factor") or 0)
        notes.append(
            f"{''.join(f'{name}: ' for name in start)}{origin.get('checkpoint')}, "
            f"{origin.get('updates')} updates, split {origin.get('subset')}, "
            + (f"capacity factor {factor:g}" if factor else "no token is dropped")
        )
        rows += [[*start, *_load_row(load)] for load in run.statistics.layers()]
    header = ["layer", "tokens", "experts", "busiest", "idlest", "dropped", "gate entropy"]
    return Table(["run"] * (len(runs) > 1) + header, rows, notes=notes) if rows else None


def _load_row(load: LayerLoad) -> list[str]:
    return [
        load.layer,
        f"{load.tokens:,}",
        f"{load.experts}",
        *(f"{100 * share:.1f} %" for share in (load.busiest, load.idlest, load.dropped)),
        f"{load.entropy:.2f} of {math.log(load.experts):.2f} nats",
    ]

#!/usr/bin/env python3
"""Random token selection against position and gate priority.

When an expert has more tokens than its capacity, those that stay are drawn at random (RTS), are
the first of the batch (position), or are those that the gate is surest of (gate). The same model
is trained with each for 600 updates, an eighth of the main table's, at capacity factors 1.0 and
0.5, five seeds, and validated without dropping. Differences are paired: models of equal seed begin
alike and see the same batches. Drops are those of training, counted over the validation data by a
token's position in its sentence.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from statistics import fmean

import curves
from results import Report, Table
from study import MOE, Scale, main
from trainings import Run, Study

from zcode_plugin.checkpoint.statistics import ExpertStatistics, read_statistics
from zcode_plugin.reporting.charts import position_chart
from zcode_plugin.reporting.plots import Chart
from zcode_plugin.reporting.runs import Run as Recorded

PRIORITIES = ("rts", "position", "gate")
CAPACITIES = ("1.0", "0.5")
# Two-sided 95 % of Student's t, by degrees of freedom: of 2 to 5 seeds.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
Key = tuple[str, str]  # priority and capacity factor


def body(study: Study, scale: Scale) -> Report:
    seeds = scale.pick((1, 2, 3, 4, 5), (1, 2))
    runs = {
        (priority, capacity): [
            scale.run(
                f"{priority}-{capacity}",
                (*MOE, "--moe-token-priority", priority, "--moe-capacity-factor", capacity),
                seed=seed,
                updates=scale.pick(600, 20),
                validations=2,
            )
            for seed in seeds
        ]
        for capacity, priority in product(CAPACITIES, PRIORITIES)
    }
    study.train([run for several in zip(*runs.values(), strict=True) for run in several])
    losses = {key: [study.curve(run)[-1].loss for run in some] for key, some in runs.items()}
    drops = {
        key: fmean(study.last(run, "overflow_expert1") for run in some)
        for key, some in runs.items()
    }
    columns = [
        "capacity factor", "priority", "final loss", "deviation", "less RTS's, paired",
        "95 % interval, +/-", "seeds in which RTS is better", "dropped, %",
    ]  # fmt: skip
    rows = [row(key, losses, drops) for key in runs]
    return Report(
        seeds=seeds,
        tables=[Table("token_priority", "Validation loss, bits per target", columns, rows)],
        charts=[chart(study, runs, capacity) for capacity in CAPACITIES],
        findings=[finding(one) for one in rows if one[1] != "rts"],
        details={"updates": next(iter(runs.values()))[0].updates, "losses": [
            {"priority": key[0], "capacity_factor": key[1], "losses": some}
            for key, some in losses.items()
        ]},
    )  # fmt: skip


def row(key: Key, losses: dict[Key, list[float]], drops: dict[Key, float]) -> list[object]:
    priority, capacity = key
    paired = [a - b for a, b in zip(losses[key], losses["rts", capacity], strict=True)]
    spread, other = curves.deviation(paired), priority != "rts"
    half = STUDENT[len(paired) - 1] * spread / len(paired) ** 0.5 if spread is not None else None
    return [
        # As a text, for the third digit: two are too few here.
        capacity, priority, f"{fmean(losses[key]):.3f}", curves.deviation(losses[key]),
        fmean(paired) if other else None, half if other else None,
        sum(one > 0 for one in paired) if other else None, drops[key],
    ]  # fmt: skip


def finding(one: list[object]) -> str:
    capacity, priority, _, _, difference, half = one[:6]
    assert isinstance(difference, float)
    assert isinstance(half, float)
    sides = "worse than" if difference > half else "better than" if difference < -half else None
    verdict = f"{sides} RTS" if sides else "no difference that five seeds can tell"
    return (
        f"Capacity factor {capacity}, {priority} priority: {difference:+.4f} +/- {half:.4f} bits "
        f"against RTS: {verdict}."
    )


def statistics(study: Study, run: Run, capacity: str) -> ExpertStatistics:
    """Of the validation data, with tokens dropped as in training."""
    path = study.folder / run.name / "stats.json"
    if not path.exists():
        study.zcode(
            "stats", str(study.checkpoint(run)), str(study.data), "--out", str(path),
            "--capacity-factor", capacity, "--max-tokens", "2048", "--cpu",
        )  # fmt: skip
    return read_statistics(path)


def chart(study: Study, runs: dict[Key, list[Run]], capacity: str) -> Chart:
    """Drops by position of the models of the first seed."""
    shown = [
        Recorded(priority, study.folder, statistics=statistics(study, some[0], capacity))
        for (priority, factor), some in runs.items()
        if factor == capacity
    ]
    [made] = position_chart(shown)
    name = f"token_priority-drops-{capacity}"
    return replace(made, name=name, title=f"{made.title}, capacity factor {capacity}")


if __name__ == "__main__":
    main("token_priority", __doc__, body)

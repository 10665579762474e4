"""What a report says, chapter by chapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zcode_plugin.reporting import charts, tables
from zcode_plugin.reporting.heatmaps import Shares, heatmaps, language, objective, shares
from zcode_plugin.reporting.page import Block, Section
from zcode_plugin.reporting.plots import Chart, Picture, line_chart, marker
from zcode_plugin.reporting.runs import Run


def sections(runs: Sequence[Run]) -> list[Section]:
    """All chapters, in the order of the page; some may be empty."""
    return [
        Section("At a glance", [Block(table=tables.overview(runs))]),
        _quality(runs),
        _learning(runs),
        _corpora(runs),
        _training_state(runs),
        _experts_in_training(runs),
        _experts_on_data(runs),
        _sources(runs),
    ]


def _draw(found: Sequence[Chart]) -> list[Picture]:
    return [line_chart(chart) for chart in found]


def _start(runs: Sequence[Run], run: Run) -> str:
    return f"{run.name}: " if len(runs) > 1 else ""


def _quality(runs: Sequence[Run]) -> Section:
    missing = [
        (
            f"{_start(runs, run)}No scores yet. This adds them:",
            f"zcode evaluate DATA --path CKPT --out {run.folder}/scores.json",
        )
        for run in runs
        if run.evaluation is None
    ]
    return Section("Translation quality", [Block(table=tables.score_table(runs))], missing)


def _learning(runs: Sequence[Run]) -> Section:
    missing = [
        (
            f"{_start(runs, run)}No training log in JSON. This writes one:",
            f"fairseq-train ... --log-format json --log-file {run.folder}/train.log",
        )
        for run in runs
        if run.log is None
    ]
    text = "Training values are means over the updates since the point before."
    pictures = _draw([*charts.learning_charts(runs), *charts.validation_charts(runs)])
    return Section(
        "Learning curves", [Block(text=text if pictures else "", pictures=pictures)], missing
    )


def _corpora(runs: Sequence[Run]) -> Section:
    blocks = [
        Block(charts.OBJECTIVES[name], pictures=_draw(panels), small=True)
        for name, panels in charts.corpus_panels(runs).items()
    ]
    if blocks:
        text = (
            "Validation loss of each direction or language; the number is the last one, the grey "
            "lines are the others. All panels of an objective have the same axes."
        )
        if len(runs) > 1:
            names = [f"{run.name} has {marker(place)[1]}" for place, run in enumerate(runs)]
            text += f" {', '.join(names)}; numbers are in this order."
        blocks.insert(0, Block(text=text))
    return Section("Directions and languages", blocks)


def _training_state(runs: Sequence[Run]) -> Section:
    return Section("Speed and stability", [Block(pictures=_draw(charts.state_charts(runs)))])


def _experts_in_training(runs: Sequence[Run]) -> Section:
    pictures = _draw(charts.expert_charts(runs))
    text = "Means over the layers with experts and over the updates since the point before."
    return Section("Experts in training", [Block(text=text if pictures else "", pictures=pictures)])


def _experts_on_data(runs: Sequence[Run]) -> Section:
    missing = [
        (
            f"{_start(runs, run)}No statistics of the experts yet. This adds them:",
            f"zcode stats CKPT DATA --capacity-factor F --out {run.folder}/stats.json",
        )
        for run in runs
        if run.statistics is None
    ]
    blocks = []
    if len(missing) < len(runs):
        text = "Shares are of the tokens that ask for an expert."
        blocks = [Block("", text, tables.load_table(runs)), *_heatmaps(runs)]
    positions = charts.position_chart(runs)
    if positions:
        text = (
            "Share of the tokens that found their expert full, over all layers of a side; the "
            "language token at the start counts as a position."
        )
        blocks.append(Block("Drops by position", text, pictures=_draw(positions)))
    return Section("Experts on data", blocks, missing)


def _heatmaps(runs: Sequence[Run]) -> list[Block]:
    counts = {load.experts for run in runs if run.statistics for load in run.statistics.layers()}
    equal = f"; an equal share is {100 / counts.pop():.3g}" if len(counts) == 1 else ""
    text = (
        f"Numbers are percentages of a row's tokens, in one scale for all layers{equal}. Tokens "
        "have the source's language in the encoder, the target's in the decoder."
    )
    return [
        Block("Experts by language", text, pictures=heatmaps("language", _shares(runs, language))),
        Block("Experts by objective", pictures=heatmaps("objective", _shares(runs, objective))),
    ]


def _shares(runs: Sequence[Run], group: Callable[[Mapping[str, Any]], str]) -> list[Shares]:
    """Tables of all runs, those of a layer beside each other."""
    found = [
        table if len(runs) == 1 else replace(table, run=run.name)
        for run in runs
        if run.statistics is not None
        for table in shares(run.statistics, group)
    ]
    layers = list(dict.fromkeys(table.layer for table in found))
    return sorted(found, key=lambda table: layers.index(table.layer))


def _sources(runs: Sequence[Run]) -> Section:
    blocks = []
    for run in runs:
        lines = [("file", str(path)) for path in run.files]
        lines += [("passed over", note) for note in run.notes]
        if run.log is not None and run.log.damaged:
            lines.append(("passed over", f"{run.log.damaged} damaged records of the log"))
        blocks.append(Block(run.name, table=tables.Table(["what", "of this run"], lines)))
    return Section("Sources", blocks)

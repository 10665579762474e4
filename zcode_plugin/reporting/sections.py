"""What a report says, chapter by chapter."""

from __future__ import annotations

from collections.abc import Sequence

from zcode_plugin.reporting import charts, tables
from zcode_plugin.reporting.heatmaps import heatmaps, language, objective, shares
from zcode_plugin.reporting.page import Block, Section
from zcode_plugin.reporting.plots import Chart, Picture, line_chart
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
            f"{_start(runs, run)}no scores yet. This adds them:",
            f"zcode evaluate DATA --path CKPT --out {run.folder}/scores.json",
        )
        for run in runs
        if run.evaluation is None
    ]
    return Section("Translation quality", [Block(table=tables.score_table(runs))], missing)


def _learning(runs: Sequence[Run]) -> Section:
    missing = [
        (
            f"{_start(runs, run)}no training log in JSON. This writes one:",
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
        blocks.insert(0, Block(text=text))
    return Section("Directions and languages", blocks)


def _training_state(runs: Sequence[Run]) -> Section:
    return Section("Speed and stability", [Block(pictures=_draw(charts.state_charts(runs)))])


def _experts_in_training(runs: Sequence[Run]) -> Section:
    pictures = _draw(charts.expert_charts(runs))
    text = "Means over the layers with experts and over the updates since the line before."
    return Section("Experts in training", [Block(text=text if pictures else "", pictures=pictures)])


def _experts_on_data(runs: Sequence[Run]) -> Section:
    blocks, missing = [], []
    for run in runs:
        if run.statistics is None:
            what = f"{_start(runs, run)}no statistics of the experts yet. This adds them:"
            command = f"zcode stats CKPT DATA --capacity-factor F --out {run.folder}/stats.json"
            missing.append((what, command))
            continue
        blocks += _expert_tables(run, run.name if len(runs) > 1 else "")
    positions = charts.position_chart(runs)
    if positions:
        text = (
            "Share of the tokens that found their expert full, over all layers of a side; the "
            "language token at the start counts as a position."
        )
        blocks.append(Block("Drops by position", text, pictures=_draw(positions)))
    return Section("Experts on data", blocks, missing)


def _expert_tables(run: Run, name: str) -> list[Block]:
    assert run.statistics is not None
    origin = run.statistics.origin
    factor = float(origin.get("capacity_factor") or 0)
    capacity = f"capacity factor {factor:g}" if factor else "no token is dropped"
    text = (
        f"{origin.get('checkpoint')} after {origin.get('updates')} updates, on "
        f"{origin.get('subset')}, {capacity}. Shares are of the tokens that ask for an expert."
    )
    file = f"{name.replace('/', '_')}_" if name else ""
    by_language = heatmaps(f"{file}language", "language", shares(run.statistics, language))
    by_objective = heatmaps(f"{file}objective", "objective", shares(run.statistics, objective))
    ask = "Numbers are percentages of a row's tokens, in one scale for all layers. "
    return [
        Block(name, text, tables.load_table(run)),
        Block(
            "Experts by language",
            ask + "Tokens have the source's language in the encoder, the target's in the decoder.",
            pictures=by_language,
        ),
        Block("Experts by objective", pictures=by_objective),
    ]


def _sources(runs: Sequence[Run]) -> Section:
    blocks = []
    for run in runs:
        lines = [("file", str(path)) for path in run.files]
        lines += [("passed over", note) for note in run.notes]
        if run.log is not None and run.log.damaged:
            lines.append(("passed over", f"{run.log.damaged} damaged records of the log"))
        blocks.append(Block(run.name, table=tables.Table(["what", "of this run"], lines)))
    return Section("Sources", blocks)

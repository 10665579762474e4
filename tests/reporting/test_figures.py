"""What is drawn, as numbers and words, before and after it is drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from reporting.run_files import train_line, valid_line, write_log, write_run

from zcode_plugin.reporting import charts
from zcode_plugin.reporting.heatmaps import heatmaps, language, objective, shares
from zcode_plugin.reporting.plots import Chart, Series, describe, line_chart
from zcode_plugin.reporting.runs import Run, read_runs
from zcode_plugin.reporting.tables import NONE, overview, score_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    return read_runs([write_run(folder / "one"), write_run(folder / "two", plus=2)])


def by_name(found: list[Chart]) -> dict[str, Chart]:
    return {chart.name: chart for chart in found}


def test_experts_by_language_and_objective(runs: list[Run]) -> None:
    assert runs[0].statistics is not None
    encoder, decoder = shares(runs[0].statistics, language)
    # encoder: de-en + de, then en-de; decoder: the languages of the targets.
    assert (encoder.layer, decoder.layer) == ("encoder.layers.1", "decoder.layers.1")
    assert encoder.rows == {"de": [17.5, 22.5, 27.5, 32.5], "en": [50, 0, 0, 50]}
    assert decoder.rows == {"de": [37.5, 12.5, 12.5, 37.5], "en": [10, 20, 30, 40]}
    by_objective = shares(runs[0].statistics, objective)[0].rows
    assert by_objective == {"dae": [25, 25, 25, 25], "mt": [30, 10, 15, 45]}
    pictures = heatmaps("language", [encoder, decoder])
    assert [picture.name for picture in pictures] == [
        "language_encoder_layers_1", "language_decoder_layers_1",
    ]  # fmt: skip
    assert "de: most to expert 3 (32%); en: most to expert 0 (50%)" in pictures[0].alt


def test_many_experts_are_drawn_in_blocks_with_their_numbers(runs: list[Run]) -> None:
    table = type(shares(runs[0].statistics, language)[0])("decoder.layers.1", {"de": [2.5] * 40})
    pictures = heatmaps("language", [table])
    assert [picture.title for picture in pictures] == [
        f"decoder.layers.1, experts {first} to {last}"
        for first, last in ((0, 15), (16, 31), (32, 39))
    ]


def test_drops_by_position_of_both_sides(runs: list[Run]) -> None:
    (chart,) = charts.position_chart(runs[:1])
    # Of 2 x 80 + 80 assignments a quarter in each of four buckets, an eighth of all in the last.
    assert [(series.label, series.y) for series in chart.series] == [
        ("encoder", [0, 0, 0, 50]), ("decoder", [0, 0, 0, 50]),
    ]  # fmt: skip
    assert chart.ticks == ["0", "1", "2\N{EN DASH}3", "4\N{EN DASH}7"]
    assert charts.position_names()[-2:] == ["128\N{EN DASH}255", "256+"]


def test_positions_of_a_few_tokens_are_left_out(runs: list[Run]) -> None:
    row = runs[0].statistics.rows[0]
    few = {**row, "asked_by_sentence_position": [20, 20, 9] + [0] * 7}
    few["dropped_by_sentence_position"] = [5, 0, 9] + [0] * 7
    statistics = replace(runs[0].statistics, rows=[few])
    (chart,) = charts.position_chart([replace(runs[0], statistics=statistics)])
    assert [series.y for series in chart.series] == [[25, 0]]
    assert chart.ticks == ["0", "1"]


def test_learning_curves_against_updates_and_time(runs: list[Run]) -> None:
    found = by_name(charts.learning_charts(runs[:1]))
    assert list(found) == [
        f"{name}_{axis}" for name in ("mt_nll_loss", "dae_nll_loss", "loss")
        for axis in ("updates", "time")
    ]  # fmt: skip
    updates, time = found["mt_nll_loss_updates"], found["mt_nll_loss_time"]
    assert (updates.x_label, time.x_label) == ("updates", "minutes of training")
    assert [(series.label, series.sparse) for series in updates.series] == [
        ("training", False), ("validation", True),
    ]  # fmt: skip
    assert list(updates.series[1].x) == [40, 80, 120]
    assert list(time.series[1].x) == pytest.approx([0.4, 0.8, 1.2])
    assert list(time.series[1].y) == list(updates.series[1].y) == [9, 8, 7]


def test_no_two_lines_differ_in_colour_alone(runs: list[Run]) -> None:
    for number in (1, 2):
        chosen = runs[:number]
        for chart in (
            *charts.learning_charts(chosen), *charts.validation_charts(chosen),
            *charts.state_charts(chosen), *charts.expert_charts(chosen),
        ):  # fmt: skip
            marks = [(series.hue % 7, series.dash % 4) for series in chart.series]
            assert len(set(marks)) == len(marks), chart.name
            assert len({series.label for series in chart.series}) == len(marks), chart.name


def test_runs_share_axes(runs: list[Run]) -> None:
    found = by_name(charts.expert_charts(runs))
    assert [series.label for series in found["dropped"].series] == [
        "one, all", "one, mt", "two, all", "two, mt",
    ]  # fmt: skip
    panels = charts.corpus_panels(runs)["mt"]
    assert [panel.title.split()[0] for panel in panels] == ["de-en", "en-de"]
    assert len({panel.y_range for panel in panels}) == 1
    assert [series.label for series in panels[0].series if not series.context] == ["one", "two"]


def test_memory_and_other_rare_metrics(runs: list[Run]) -> None:
    found = by_name(charts.state_charts(runs[:1]))
    assert list(found) == ["lr", "gnorm", "wps", "memory"]
    assert found["memory"].series[0].y == [12.5] * 12


def test_a_log_of_stock_criterion_and_a_single_point(tmp_path: Path) -> None:
    write_log(tmp_path / "a.log", [train_line(5, 1).replace("mt_", ""), valid_line(5, nll_loss=4)])
    (run,) = read_runs([tmp_path])
    (chart, _) = charts.learning_charts([run])
    assert [list(series.y) for series in chart.series] == [[5.0], [4.0]]
    assert line_chart(chart).png.startswith(b"\x89PNG")


def test_gaps_and_words() -> None:
    chart = Chart(
        "c", "title", "updates", "bits", [Series("a", [1, 2, 3], [4, float("nan"), 2]),
        Series("empty", [1], [float("inf")])],
    )  # fmt: skip
    assert describe(chart) == (
        "Line chart: title; bits against updates. a: 4 at first, 2 at last, between 2 and 4."
    )
    assert line_chart(chart).png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("losses", "limits"), [(("3", "inf"), (2.9, 3.1)), (("nan", "3"), (2.9, 3.1)), (("nan",), None)]
)
def test_a_run_that_diverged_has_panels(
    tmp_path: Path, losses: tuple[str, ...], limits: tuple[float, float] | None
) -> None:
    both = ("mt_nll_loss_de-en", "mt_nll_loss_en-de")
    lines = [
        valid_line(10 * number, **dict.fromkeys(("mt_nll_loss", *both), loss))
        for number, loss in enumerate(losses, start=1)
    ]
    write_log(tmp_path / "a.log", [train_line(10, 1), *lines])
    panels = charts.corpus_panels(read_runs([tmp_path]))["mt"]
    assert [panel.y_range for panel in panels] == [limits, limits]
    assert line_chart(panels[0]).png.startswith(b"\x89PNG")


def test_means_are_over_directions_that_all_runs_have(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "one"), write_run(tmp_path / "two", plus=2)]
    path = folders[1] / "scores.json"
    record = json.loads(path.read_text())
    del record["directions"]["en-de"]
    path.write_text(json.dumps(record))
    runs = read_runs(folders)
    table = score_table(runs)
    assert table is not None
    assert [row[:4] for row in table.rows] == [
        ["de-en", "160", "20.00", "22.00"],
        ["en-de", "160", "10.00", NONE],
        ["mean X->en", "1 dir.", "20.00", "22.00"],
        ["mean all", "1 dir.", "20.00", "22.00"],
    ]
    note = "Not in the means, as not all runs have it: en-de"
    glance = overview(runs)
    assert (table.notes[0], glance.notes) == (note, [note])
    assert ["mean BLEU, test", "20.00", "22.00"] in glance.rows


def test_scores_of_other_sentences_are_not_to_be_compared(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "one"), write_run(tmp_path / "two")]
    path = folders[1] / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"subset": "valid"}))
    table = score_table(read_runs(folders))
    assert table is not None
    assert table.notes[0] == "Not to be compared: two scored other sentences than one"


def test_scores_of_comet_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one")
    path = folder / "scores.json"
    record = json.loads(path.read_text())
    for entry in record["directions"].values():
        entry["comet"] = 0.75
    path.write_text(json.dumps(record))
    table = score_table(read_runs([folder]))
    assert table is not None
    assert table.header == ["direction", "sentences", "BLEU", "chrF++", "COMET"]
    assert table.rows[0] == ["de-en", "160", "20.00", "40.00", "0.7500"]


def test_scores_of_two_runs_side_by_side(runs: list[Run]) -> None:
    table = score_table(runs)
    assert table is not None
    assert table.header == [
        "direction", "sentences", "BLEU, one", "BLEU, two", "chrF++, one", "chrF++, two",
    ]  # fmt: skip
    assert table.rows == [
        ["de-en", "160", "20.00", "22.00", "40.00", "40.00"],
        ["en-de", "160", "10.00", "12.00", "30.00", "30.00"],
        ["mean X->en", "1 dir.", "20.00", "22.00", "40.00", "40.00"],
        ["mean en->X", "1 dir.", "10.00", "12.00", "30.00", "30.00"],
        ["mean all", "2 dir.", "15.00", "17.00", "35.00", "35.00"],
    ]
    assert "BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0" in "\n".join(
        table.notes
    )


def test_runs_at_a_glance(runs: list[Run]) -> None:
    facts = dict(overview(runs[:1]).rows)
    assert facts == {
        "updates": "120",
        "time of training": "1.2 min",
        "lowest mt loss, valid (bits per target)": "7.000 (update 120)",
        "lowest dae loss, valid (bits per target)": "9.000 (update 40)",
        "typical speed (target tokens per second)": "1,000",
        "dropped tokens, last logged": "2.50 %",
        "intervals with an infinite or undefined gradient norm": "1",
        "mean BLEU, test": "15.00",
        "mean chrF++, test": "35.00",
        "experts": "4",
        "layers with experts": "2",
    }

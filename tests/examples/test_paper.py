"""The studies of the paper's tables: what they compute of their runs, and the page of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"
sys.path.append(str(PAPER))

import curves  # noqa: E402
import page  # noqa: E402
import quality  # noqa: E402
import results  # noqa: E402
from decoding import Measurements, translation  # noqa: E402
from results import Report, Table  # noqa: E402
from study import DENSE, MOE, Scale, both_ways  # noqa: E402
from trainings import Point, Run, Study  # noqa: E402

from zcode_plugin.reporting.plots import Chart, Series  # noqa: E402

BASELINE = [Point(100, 10.0, 9.0), Point(200, 20.0, 7.0), Point(300, 30.0, 6.0)]
FASTER = [Point(100, 20.0, 8.0), Point(200, 40.0, 5.0), Point(300, 60.0, 4.0)]


def test_where_a_curve_reaches_a_loss() -> None:
    assert curves.reaching(BASELINE, 9.5) == Point(100, 10.0, 9.0)  # before the first validation
    assert curves.reaching(BASELINE, 8.0) == Point(150, 15.0, 8.0)
    assert curves.reaching(BASELINE, 6.0) == Point(300, 30.0, 6.0)
    assert curves.reaching(BASELINE, 5.9) is None
    # Up again and down: the first time counts.
    assert curves.reaching([*BASELINE, Point(400, 40.0, 8.0)], 7.0) == Point(200, 20.0, 7.0)


def test_speedup_is_that_of_mean_curves() -> None:
    # FASTER is at 6.0 after 100 + 2/3 of 100 updates, 20 + 2/3 of 20 seconds.
    updates, seconds = curves.speedup([FASTER], [BASELINE, FASTER])  # of the same seeds
    assert updates == pytest.approx(300 / 167)
    assert seconds == pytest.approx(30 / (20 + 40 / 3))
    # Means are 8.5, 6, 5 after 15, 30, 45 seconds: at 6.0 after 200 updates.
    updates, seconds = curves.speedup([FASTER, BASELINE], [BASELINE, BASELINE])
    assert (updates, seconds) == (300 / 200, 30 / 30)
    assert curves.speedup([BASELINE], [FASTER]) == (None, None)


def test_scores_are_means_over_directions_of_each_group() -> None:
    result = {
        "directions": {
            "de-en": {"bleu": 10.0, "chrf": 30.0},
            "fr-en": {"bleu": 20.0, "chrf": 40.0},
            "en-de": {"bleu": 3.0, "chrf": 20.0},
        }
    }
    assert quality.scores(result) == [15.0, 3.0, 11.0, 35.0, 20.0, 30.0]
    parts = [{"directions": {key: one}} for key, one in result["directions"].items()]
    assert quality.joined(parts) == result


def test_significance_is_of_equal_seeds(tmp_path: Path) -> None:
    references = [f"the file number {n} is open in the window" for n in range(30)]
    worse = [line.replace("open", "shut") if n % 2 else line for n, line in enumerate(references)]

    def write(name: str, hypotheses: list[str]) -> Path:
        entry = {"sources": references, "references": references, "hypotheses": hypotheses,
                 "bleu_signature": "nrefs:1|tok:13a"}  # fmt: skip
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"directions": {"de-en": entry}}))
        return path

    systems = {
        "MoE": [write("moe-1", references), write("moe-2", references)],
        "dense": [write("dense-1", worse), write("dense-2", references)],
    }
    tests = quality.significance(systems, (1, 2), "dense", ["de-en"])
    assert [test[:4] for test in tests] == [
        (where, seed, metric, "MoE")
        for seed in (1, 2, None)
        for where in ("all sentences", "de-en")
        for metric in ("bleu", "chrf")
    ]
    first, last = tests[0], tests[7]
    assert (first.score, last.score, last.baseline) == (pytest.approx(100), 100, 100)
    assert first.baseline < 95
    assert first.p is not None
    assert first.p < 0.01
    table = quality.significance_table("t", tests, "dense")
    assert table.rows[0][:4] == ["all sentences", "MoE", "bleu", 1]
    assert table.rows[0][6] == first.score - first.baseline
    assert [row[3] for row in table.rows[:3]] == [1, 2, "all"]
    together = tests[8]
    # Both seeds' sentences as one text: of the half that is worse, half is.
    assert first.baseline < together.baseline < 100
    gain = (first.score - first.baseline) / 2
    found = quality.finding(tests, "MoE", "dense")
    assert f"MoE against dense, BLEU: all sentences {gain:+.2f} (p of seeds: 0.001, " in found
    assert f"; of all together: {together.p:.3f})" in found


def test_losses_of_pieces_are_means_by_place_in_a_word() -> None:
    from forward import MeansOfPieces

    means = MeansOfPieces()
    means.add("de-en", ["\u2581open", "ed", "\u2581file"], [4.0, 1.0, 2.0])
    means.add("fr-en", ["\u2581file", "s"], [6.0, 2.0])
    means.add("en-de", ["\u2581Datei"], [7.0])
    assert means.by_kind() == {
        ("X->en", "first"): 4.0,
        ("X->en", "inside"): 1.5,
        ("en->X", "first"): 7.0,
    }


def test_language_tokens_are_no_pieces_of_words() -> None:
    import torch
    from forward import of_words

    target = torch.tensor([[9, 5, 6, 2, 1], [8, 7, 2, 1, 1]])
    assert of_words(target, 4, {8, 9}).tolist() == [
        [False, True, True, False, False], [False, True, False, False, False],
    ]  # fmt: skip


def test_random_token_selection_is_the_baseline_of_paired_differences() -> None:
    from token_priority import finding, row

    losses = {("rts", "1.0"): [5.0, 5.2], ("position", "1.0"): [5.1, 5.4]}
    drops = {("rts", "1.0"): 9.0, ("position", "1.0"): 10.0}
    one = row(("position", "1.0"), losses, drops)
    assert one[:2] == ["1.0", "position"]
    difference, half, better, dropped = one[4:]
    assert difference == pytest.approx(0.15)
    # Two seeds: standard deviation 0.0707 of the differences over the root of 2, 12.706 of them.
    assert half == pytest.approx(12.706 * 0.05)
    assert (better, dropped) == (2, 10.0)
    assert "no difference" in finding(one)
    assert row(("rts", "1.0"), losses, drops)[4:] == [None, None, None, 9.0]


def test_gates_are_held_against_the_dense_model_of_equal_seed() -> None:
    import gates

    found = {"dense": [BASELINE, FASTER], "learned": [FASTER, FASTER]}
    paired = curves.differences(found["learned"], found["dense"])
    assert [one[-1] for one in paired] == [-2.0, 0.0]
    # After 100, 200 and 300 updates: 1, 2 and 2 for the first seed, nothing for the second.
    assert gates.gains(found, "learned") == [0.5, 1.0, 1.0]
    assert gates.finding(["learned", 2, 5.0, -0.1234, 0.02, 31.4]) == (
        "A gate, learned: -0.123 bits (deviation 0.020) from the dense model; 31 % of tokens moved."
    )


def test_a_study_on_a_gpu_trains_with_the_same_options_but_one(tmp_path: Path) -> None:
    run = Scale(quick=True).moe()
    on_cpu, on_gpu = (Study(tmp_path, tmp_path, 1, gpu).options(run) for gpu in (False, True))
    assert [one for one in on_cpu if one not in on_gpu] == ["--cpu"]
    assert [one for one in on_cpu if one != "--cpu"] == on_gpu


def test_rounds_go_forth_and_back() -> None:
    assert list(translation.alternating(["a", "b"], 3)) == [
        (0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b"),
    ]  # fmt: skip


def test_measurements_are_made_once(tmp_path: Path) -> None:
    made = []

    def measure() -> float:
        made.append(1)
        return 2.5

    for _ in range(2):
        assert Measurements(tmp_path / "speed.json", ["a model"]).get("one", measure) == 2.5
    assert len(made) == 1
    Measurements(tmp_path / "speed.json", ["another"]).get("one", measure)
    assert len(made) == 2


def test_no_title_of_training_stands_in_another_part(tmp_path: Path) -> None:
    import finetuning

    parts = {
        "train": [("a text", "One"), ("the same text", "Two"), ("a third", "Held out")],
        "valid": [("the same text", "Other")],
        "test": [("another", "Held out")],
    }
    for split, pairs in parts.items():
        for number, kind in enumerate(("body", "title")):
            text = "".join(f"{pair[number]}\n" for pair in pairs)
            (tmp_path / f"{split}.de.{kind}").write_text(text)
    found = finetuning.divided(tmp_path, "de")
    assert found["train"] == [("a text\n", "One\n")]
    assert found["test"] == [("another\n", "Held out\n")]


def test_studies_share_runs_that_are_the_same() -> None:
    scale = Scale(quick=False)
    assert scale.dense(2) == scale.run("dense", DENSE, seed=2)
    assert scale.moe().options[-1] == scale.moe().directions == ",".join(both_ways(scale.pairs))
    assert len(scale.moe().directions.split(",")) == 16
    assert scale.moe() != scale.run("moe", (*MOE, "--moe-top-k", "2"))


def test_a_run_with_other_options_is_not_taken_for_the_same(tmp_path: Path) -> None:
    study = Study(tmp_path / "runs", tmp_path, 1)
    folder = tmp_path / "runs" / "dense-1"
    folder.mkdir()
    (folder / "options.json").write_text('["--other"]')
    (folder / "finished").touch()
    with pytest.raises(SystemExit, match="holds a run with other options: delete it"):
        study.train([Run("dense-1", 10, ("--lang-pairs", "de-en"))])


def test_time_of_training_is_that_of_most_updates(tmp_path: Path) -> None:
    study = Study(tmp_path, tmp_path, 1)
    folder = tmp_path / "dense-1"
    folder.mkdir()
    lines = []
    for updates, wall in ((100, "9"), (200, "40"), (300, "9")):
        lines.append({"epoch": 1, "update": 0.1, "num_updates": updates, "train_wall": wall})
        valid = {"num_updates": updates, "mt_nll_loss": f"{8 - updates / 100}"}
        lines.append({"epoch": 1, **{f"valid_{name}": one for name, one in valid.items()}})
    # A run that was interrupted after its last save makes one update more.
    lines.append({"epoch": 1, "valid_num_updates": 301, "valid_mt_nll_loss": "5.1"})
    (folder / "train.log").write_text("\n".join(map(json.dumps, lines)))
    assert study.curve(Run("dense-1", 300, ())) == [
        Point(100, 9.0, 7.0), Point(200, 18.0, 6.0), Point(300, 27.0, 5.0),
    ]  # fmt: skip


REPORT = Report(
    seeds=[1, 2],
    tables=[
        Table("tiny", "Losses", ["model", "loss", "updates"], [["a", 0.25, 1200], ["b", None, 3]])
    ],
    charts=[Chart("tiny-updates", "Losses", "updates", "loss", [Series("a", [0, 1], [2.0, 1.0])])],
    findings=["a is better."],
    details={"updates": 1200, "signatures": ["sig|x"]},
)  # fmt: skip


def test_what_is_written_is_what_the_page_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "results"
    results.write(folder, "tiny", "A title.\n\nWhat it\nasks.", REPORT, quick=False)
    assert {path.name for path in folder.iterdir()} == {"tiny.json", "tiny.csv", "tiny-updates.png"}
    assert (folder / "tiny.csv").read_text() == "model,loss,updates\na,0.25,1200\nb,,3\n"
    record = json.loads((folder / "tiny.json").read_text())
    shown = page.section(record, "results")
    assert shown.startswith("## A title\n\nWhat it\nasks.\n\n**a is better.**\n")
    assert "| a | 0.250 | 1,200 |\n| b |  | 3 |\n" in shown
    assert "](results/tiny.csv)" in shown
    assert "![Losses](results/tiny-updates.png)" in shown
    assert "seeds 1, 2; 1,200 updates; `sig|x`." in shown


def test_a_quick_run_is_no_result(tmp_path: Path) -> None:
    record = {"study": "tiny", "quick": True}
    with pytest.raises(SystemExit, match="tiny: of --quick"):
        page.section(record, "results")


def test_nothing_is_written_when_a_number_cannot_be(tmp_path: Path) -> None:
    bad = Report([1], [Table("tiny", "t", ["a"], [[float("nan")]])])
    with pytest.raises(ValueError, match="JSON"):
        results.write(tmp_path / "results", "tiny", "T", bad, quick=False)
    assert not (tmp_path / "results").exists()

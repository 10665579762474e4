"""Records of runs: tables made of them are those made of the runs themselves."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "paper"))

from forward import losses_of_pieces
from records import Records
from study import DENSE, Scale, prepare
from trainings import Run, Study

TEXT = {
    "en": "a file opens the page of a table with some text in every row and column",
    "de": "eine Datei zeigt die Seite der Tabelle mit etwas Text in jeder Zeile",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and data, as a study has them."""
    work = tmp_path_factory.mktemp("work")
    raw = work / "corpus" / "raw"
    raw.mkdir(parents=True)
    draw = random.Random(1)
    for split, count in (("train", 300), ("valid", 8), ("test", 8)):
        for language, text in TEXT.items():
            words = text.split()
            lines = [" ".join(draw.choices(words, k=6)) for _ in range(count)]
            if split == "test":
                # Subwords make two letters of the ligature, and know nothing of the other.
                lines[:2] = [f"{words[1]} \ufb01le", f"{words[1]} ō"]
            (raw / f"{split}.en-de.{language}").write_text("\n".join([*lines, ""]))
    options = ("--vocab-size", "50", "--character-coverage", "1")
    prepare(raw, work / "data", work / "prepare.log", *options)
    return work


@pytest.fixture(scope="module")
def run() -> Run:
    return Scale(quick=True).run("dense", DENSE, updates=4, directions=["de-en", "en-de"])


@pytest.fixture(scope="module")
def study(work: Path) -> Study:
    return Study(work / "runs", work / "data", 1)


@pytest.fixture(scope="module")
def folder(work: Path, study: Study, run: Run) -> Path:
    """Where the run's record is."""
    Records(study, work / "records").measure({"dense": [run]})
    return work / "records"


def test_a_record_stands_in_for_its_run(work: Path, folder: Path, study: Study, run: Run) -> None:
    elsewhere = Study(work / "elsewhere", work / "data", 1)
    [found] = Records(elsewhere, folder, makes=False).measure({"dense": [run]})["dense"]
    assert found.curve == study.curve(run)
    assert found.parameters == study.parameters(run)
    pieces = losses_of_pieces(study.checkpoint(run), study.data, "test")
    assert found.pieces == {f"{group}, {kind}": loss for (group, kind), loss in pieces.items()}
    evaluated = json.loads(study.results(run).read_text())["directions"]
    assert evaluated["de-en"]["sources"][0] == "Datei file"
    assert "<unk>" in evaluated["de-en"]["sources"][1]
    for direction, entry in json.loads(found.path.read_text())["directions"].items():
        assert entry == {key: evaluated[direction][key] for key in entry}
    assert not elsewhere.checkpoint(run).exists()


def test_a_run_with_a_record_is_not_trained(
    work: Path, folder: Path, study: Study, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    # By a GPU, or a checkout elsewhere: the options that say so are no part of the record.
    Records(Study(work / "again", study.data, 1, gpu=True), folder).measure({"dense": [run]})
    assert capsys.readouterr().out == ""


def test_without_training_there_are_the_runs_before_the_first_gap(
    folder: Path, study: Study, run: Run
) -> None:
    second = Run("dense-2", run.updates, run.options)
    records = Records(study, folder, makes=False)
    found = records.measure({"dense": [run, second], "moe": [second], "late": [second, run]})
    assert {name: len(several) for name, several in found.items()} == {"dense": 1}
    with pytest.raises(SystemExit, match=r"dense-2\.json is missing: leave out --recorded"):
        records.measure({"moe": [second]}, ["moe"])


def test_a_record_of_other_options_is_refused(
    tmp_path: Path, folder: Path, study: Study, run: Run
) -> None:
    shutil.copytree(folder, tmp_path / "records")
    longer = Run(run.name, 5, run.options)
    with pytest.raises(SystemExit, match=r"dense-1\.json is of a run with other options: delete"):
        Records(study, tmp_path / "records").measure({"dense": [longer]})

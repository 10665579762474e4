"""docs/results.md says what the files in docs/results say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
RECORDS = sorted(RESULTS.glob("*.json"))


def test_the_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "paper" / "page.py"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docs" / "results.md").read_text(), "run make docs"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_csv_and_figures_are_those_of_the_record(path: Path) -> None:
    record = json.loads(path.read_text())
    assert record["study"] == path.stem
    assert (ROOT / "examples" / "paper" / f"{path.stem}.py").exists()
    for table in record["tables"]:
        with (RESULTS / f"{table['name']}.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        expected = [["" if value is None else str(value) for value in row] for row in table["rows"]]
        assert rows == [table["columns"], *expected]
    for figure in record["figures"]:
        assert (RESULTS / f"{figure['name']}.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_nothing_else() -> None:
    records = [json.loads(path.read_text()) for path in RECORDS]
    named = {f"{table['name']}.csv" for record in records for table in record["tables"]}
    named |= {f"{figure['name']}.png" for record in records for figure in record["figures"]}
    named |= {f"{record['study']}{end}" for record in records for end in (".json", ".notes.txt")}
    assert {path.name for path in RESULTS.iterdir()} <= named

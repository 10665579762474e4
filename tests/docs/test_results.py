"""docs/results.md says what the files in docs/results say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples" / "paper"))

import main_table  # noqa: E402
import quality  # noqa: E402
from study import Scale  # noqa: E402

RESULTS = ROOT / "docs" / "results"
RECORDS = sorted(RESULTS.glob("*.json"))


def test_the_page_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "paper" / "page.py"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docs" / "results.md").read_text(), "run make docs"


def test_readme_has_the_main_table() -> None:
    page, readme = (systems((ROOT / name).read_text()) for name in ("docs/results.md", "README.md"))
    assert readme.keys() == page.keys()
    for system, cells in readme.items():
        assert cells == {column: page[system][column] for column in cells}
    tables = json.loads((RESULTS / "main_table.json").read_text())["tables"]
    [tests] = [table["rows"] for table in tables if table["name"] == "main_table-significance"]
    ps = [f"{row[-1]:.3f}" for row in tests if row[1:3] == ["MoE", "bleu"] and row[3] != "all"]
    assert f"(p {', '.join(ps)})" in (ROOT / "README.md").read_text()


def systems(text: str) -> dict[str, dict[str, str]]:
    """The first table of systems in Markdown: cells by system and column."""
    lines = text[text.index("\n| system |") + 1 :].splitlines()
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in takewhile(lambda line: line.startswith("|"), lines)
    )
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_every_record_is_on_the_page() -> None:
    sections = (ROOT / "docs" / "results.md").read_text().splitlines()
    titles = {f"## {json.loads(path.read_text())['title']}" for path in RECORDS}
    assert titles == {line for line in sections if line.startswith("## ")}


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


def test_the_main_table_is_that_of_its_runs() -> None:
    record = json.loads((RESULTS / "main_table.json").read_text())
    for system, runs in main_table.multilingual(Scale(quick=False)).items():
        files = [RESULTS / "records" / f"{run.name}.json" for run in runs]
        several = [json.loads(path.read_text()) for path in files if path.exists()]
        rows = [row for row in record["tables"][0]["rows"] if row[0] == system]
        expected = [[system, len(several), *quality.mean_scores(several)]] if several else []
        assert [row[: 2 + len(quality.COLUMNS)] for row in rows] == expected


def test_there_is_nothing_else() -> None:
    records = [json.loads(path.read_text()) for path in RECORDS]
    runs = {name for record in records for name in record["details"].get("runs", ())}
    assert {path.stem for path in (RESULTS / "records").iterdir()} == runs
    named = {f"{table['name']}.csv" for record in records for table in record["tables"]}
    named |= {f"{figure['name']}.png" for record in records for figure in record["figures"]}
    named |= {f"{record['study']}{end}" for record in records for end in (".json", ".notes.txt")}
    assert {path.name for path in RESULTS.iterdir()} <= {*named, "records"}

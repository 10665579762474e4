"""Writes docs/results.md out of what the scripts of examples/paper wrote: `make docs`.

Each study has a file in docs/results; what people add to it, such as what was tried, stands beside
it in NAME.notes.txt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from results import cell, describe

TITLE = """# Results

Written by `make docs` out of [the files](results) that the scripts of
[examples/paper](../examples/paper/README.md) wrote; do not edit it. The corpus is the help of
LibreOffice in English and eight languages, about 25,000 paragraphs each, divided by page; models
are small enough for two cores. All models of a study are trained alike but for what it compares.
"""
STUDIES = (
    "main_table", "learning_rate", "gates", "experts", "token_priority", "multitask", "aggregation",
    "pruning", "depth", "finetuning", "throughput",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(__file__).resolve().parents[2] / "docs" / "results"
    parser.add_argument("--results", type=Path, default=folder, help="folder of the studies' files")
    print(page(parser.parse_args().results), end="")


def page(folder: Path) -> str:
    """The page of the studies whose files a folder has."""
    parts = [TITLE]
    for name in STUDIES:
        path = folder / f"{name}.json"
        if path.exists():
            notes = path.with_suffix(".notes.txt")
            parts.append(section(json.loads(path.read_text()), folder.name))
            parts += [notes.read_text()] if notes.exists() else []
    return "\n".join(parts)


def section(record: dict[str, Any], folder: str) -> str:
    """A study in Markdown.

    Args:
        record: its JSON.
        folder: of its figures, as seen from the page.

    Raises:
        SystemExit: it is of a quick run, which says nothing of quality.
    """
    if record["quick"]:
        raise SystemExit(f"{record['study']}: of --quick, which says nothing: run it in full")
    lines = [f"## {record['title']}", "", *paragraphs(record["text"]), ""]
    lines += [part for finding in record["findings"] for part in (f"**{finding}**", "")]
    for table in record["tables"]:
        lines += [f"{table['title']} ([CSV]({folder}/{table['name']}.csv)):", ""]
        lines += [*markdown(table["columns"], table["rows"]), ""]
    for figure in record["figures"]:
        lines += [f"![{figure['title']}]({folder}/{figure['name']}.png)", ""]
    lines += [origin(record, folder), ""]
    return "\n".join(lines)


def paragraphs(text: str) -> Iterable[str]:
    return (line.strip() for line in text.splitlines())


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [columns, ["---", *(["---:"] * (len(columns) - 1))]]
    lines += [[cell(value) for value in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def origin(record: dict[str, Any], folder: str) -> str:
    """Date, machine, versions, seeds, and what else the study says of itself."""
    details, versions = record["details"], record["versions"]
    parts = [
        f"`python examples/paper/{record['study']}.py`, {record['date']}",
        describe(record["machine"]),
        ", ".join(f"{package} {version}" for package, version in versions.items()),
        f"seeds {', '.join(map(str, record['seeds']))}",
    ]
    if "updates" in details:
        parts.append(f"{details['updates']:,} updates")
    if "runs" in details:
        parts.append(f"runs, each with a [record]({folder}/records): {', '.join(details['made'])}")
    parts += [f"`{signature}`" for signature in details.get("signatures", ())]
    return "; ".join(parts) + "."


if __name__ == "__main__":
    main()

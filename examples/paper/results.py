"""What a study found, as JSON with all that is needed to judge it, CSV, a table and figures."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainings import Point

from zcode_plugin.cli.console import format_table
from zcode_plugin.cli.outputs import write_files
from zcode_plugin.reporting.plots import Chart, Series, line_chart

PACKAGES = ("fairseq", "fairscale", "torch", "sacrebleu", "sentencepiece")
Record = dict[str, Any]


def machine() -> Record:
    """The shape of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "python": platform.python_version(),
    }


def write(
    folder: Path,
    name: str,
    *,
    quick: bool,
    seeds: Sequence[int],
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    charts: Sequence[Chart] = (),
    **details: Any,
) -> None:
    """Write NAME.json, NAME.csv and the charts into a folder, and print the table.

    Args:
        folder: for all files.
        name: of the study.
        quick: whether it was a run that only shows that the script works.
        seeds: of its runs.
        columns, rows: the table; numbers as they are, None where there is none.
        charts: figures, each in a file of its own name.
        details: whatever else belongs to the result: lengths, options, signatures, tests.
    """
    record = {
        "study": name,
        "quick": quick,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "seeds": list(seeds),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "charts": [{"name": chart.name, "title": chart.title} for chart in charts],
        **details,
    }
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([columns, *rows])
    files = {
        folder / f"{name}.json": (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(),
        folder / f"{name}.csv": table.getvalue().encode(),
    }
    files |= {folder / f"{chart.name}.png": line_chart(chart).png for chart in charts}
    folder.mkdir(parents=True, exist_ok=True)
    write_files(files)
    print(as_table(record))


def as_table(record: Record) -> str:
    """The table of a record, as text."""
    return format_table(
        [record["columns"], *([cell(one) for one in row] for row in record["rows"])]
    )


def cell(value: object) -> str:
    """A number with the digits that mean something, nothing for None."""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def loss_charts(name: str, title: str, curves: dict[str, list[list[Point]]]) -> list[Chart]:
    """Validation loss over updates and over time; of several seeds a line each, alike."""
    charts = []
    for axis, label, key in (
        ("updates", "updates", lambda point: point.updates),
        ("time", "minutes of training", lambda point: point.seconds / 60),
    ):
        series = [
            Series(
                system if number == 0 else "",
                [key(point) for point in curve],
                [point.loss for point in curve],
                hue=hue,
                dash=hue,
                sparse=True,
            )
            for hue, (system, seeds) in enumerate(curves.items())
            for number, curve in enumerate(seeds)
        ]
        heading = f"{title}, over {axis}"
        charts.append(
            Chart(f"{name}-{axis}", heading, label, "validation loss (bits per target)", series)
        )
    return charts

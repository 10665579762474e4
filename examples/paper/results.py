"""What a study found, as JSON with all that is needed to judge it, CSV, a table and figures."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from trainings import Point

from zcode_plugin.console import format_table
from zcode_plugin.files import write_files
from zcode_plugin.reporting.plots import Chart, Series, line_chart

PACKAGES = ("fairseq", "fairscale", "torch", "sacrebleu", "sentencepiece")


@dataclass(frozen=True)
class Table:
    """Figures as they are, not rounded; None where there is none.

    Attributes:
        name: of its CSV file.
        title: above it.
        columns, rows: what it holds.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Report:
    """What a study found.

    Attributes:
        seeds: of its runs.
        tables: the first is the answer.
        charts: figures, each in a file of its own name.
        findings: sentences that are made of the figures.
        details: whatever else belongs to it: lengths, options, signatures.
    """

    seeds: Sequence[int]
    tables: Sequence[Table]
    charts: Sequence[Chart] = ()
    findings: Sequence[str] = ()
    details: dict[str, Any] = field(default_factory=dict)


def provenance(gpu: bool) -> dict[str, Any]:
    """The day, this machine and what is installed."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(gpu),
        "versions": {package: version(package) for package in PACKAGES},
    }


def machine(gpu: bool) -> dict[str, Any]:
    """The shape of this machine, its GPU if that was used."""
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
        **({"gpu": torch.cuda.get_device_name()} if gpu else {}),
    }


def describe(machine: Mapping[str, Any]) -> str:
    """What `machine` found, in words."""
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB, "
        f"{machine['gpu'] + ', ' if 'gpu' in machine else ''}Python {machine['python']}"
    )


def write(
    folder: Path, name: str, description: str, report: Report, *, quick: bool, gpu: bool = False
) -> None:
    """Write NAME.json, the CSV of each table and the charts, all or none, and print the tables.

    Args:
        folder: for all files.
        name: of the study.
        description: its title, an empty line, and what it asks and how.
        report: what it found.
        quick: whether it only shows that the script works.
        gpu: whether it ran on one.
    """
    title, _, text = description.strip().partition("\n")
    record = {
        "study": name,
        "title": title.rstrip("."),
        "text": text.strip(),
        "quick": quick,
        **provenance(gpu),
        "seeds": list(report.seeds),
        "tables": [asdict(table) for table in report.tables],
        "figures": [{"name": chart.name, "title": chart.title} for chart in report.charts],
        "findings": list(report.findings),
        "details": report.details,
    }
    files = {folder / f"{name}.json": as_json(record)}
    files |= {folder / f"{table.name}.csv": as_csv(table) for table in report.tables}
    files |= {folder / f"{chart.name}.png": line_chart(chart).png for chart in report.charts}
    folder.mkdir(parents=True, exist_ok=True)
    write_files(files)
    for table in report.tables:
        print(f"\n{table.title}\n{as_text(table)}")
    print("", *report.findings, sep="\n")


def as_json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def as_csv(table: Table) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue().encode()


def as_text(table: Table) -> str:
    return format_table([list(table.columns), *([cell(one) for one in row] for row in table.rows)])


def cell(value: object) -> str:
    """A number with the digits that mean something, nothing for None."""
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:,.2f}"
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

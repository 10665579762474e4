"""Draws the results of `moe_layer.py`, and prints them as Markdown tables.

Both show the time of forward and backward relative to the limit.

    python benchmarks/plot_moe_layer.py layer.json layer.png > layer.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Told apart without colour, too: each contestant has a marker and a dash pattern of its own, the
# same in all panels.
STYLES = {
    "limit": "C7o-",
    "dense": "C1s--",
    "ours": "C2^-",
    "ours dropless": "C2v:",
    "fairscale": "C4P--",
    "deepspeed": "C0X-.",
    "deepspeed dropless": "C0*:",
    "switch": "C3D-.",
}


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    record = json.loads(source.read_text())
    draw(record, target)
    for dtype, k in panels(record):
        print(markdown(record, dtype, k))


def panels(record: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted({(row["dtype"], row["k"]) for row in record["rows"]}, reverse=True)


def rows_by_contestant(
    record: dict[str, Any], dtype: str, k: int
) -> dict[str, dict[int, dict[str, Any]]]:
    """Rows of a panel by contestant and number of experts."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in record["rows"]:
        if (row["dtype"], row["k"]) == (dtype, k):
            found.setdefault(row["contestant"], {})[row["experts"]] = row
    return found


def markdown(record: dict[str, Any], dtype: str, k: int) -> str:
    """Wall time relative to the limit, CPU time in brackets; the limit in milliseconds."""
    contestants = rows_by_contestant(record, dtype, k)
    counts = sorted({count for rows in contestants.values() for count in rows})
    lines = [
        f"Top-{k}, {dtype}:",
        "",
        f"| x limit: wall (CPU) | {' | '.join(f'{count} experts' for count in counts)} |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for name, rows in contestants.items():
        cells = [
            f"{row['step_ms']:.0f} ms"
            if name == "limit"
            else f"{row['step_x_limit']:.2f} ({row['step_cpu_x_limit']:.2f})"
            for row in (rows[count] for count in counts)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def draw(record: dict[str, Any], target: Path) -> None:
    shown = panels(record)
    rows = -(-len(shown) // 2)
    figure, axes = plt.subplots(
        rows, min(2, len(shown)), figsize=(5 * min(2, len(shown)), 4 * rows), squeeze=False
    )
    for axis, (dtype, k) in zip(axes.flat, shown, strict=False):
        for name, by_count in rows_by_contestant(record, dtype, k).items():
            counts = sorted(by_count)
            ratios = [by_count[count]["step_x_limit"] for count in counts]
            axis.plot(counts, ratios, STYLES[name], label=name)
        axis.set(title=f"top-{k}, {dtype}", xlabel="experts", ylabel="time / limit", ylim=(0, 2))
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, map(str, counts))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower left")
    figure.suptitle(
        f"MoE layer, forward + backward, {record['tokens']} tokens, d {record['dim']}, "
        f"ffn {record['ffn']} ({record['machine']}, {record['date'][:10]})",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()

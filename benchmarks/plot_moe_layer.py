"""Draws the results of `moe_layer.py`: time of forward and backward relative to the limit.

python benchmarks/plot_moe_layer.py layer.json layer.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Told apart without colour, too: each contestant has a marker and a dash pattern of its own.
STYLES = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.", "*:")


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    record = json.loads(source.read_text())
    panels = sorted({(row["dtype"], row["k"]) for row in record["rows"]}, reverse=True)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, (dtype, k) in zip(axes[0], panels, strict=True):
        rows = [row for row in record["rows"] if (row["dtype"], row["k"]) == (dtype, k)]
        names = dict.fromkeys(row["contestant"] for row in rows)
        for name, style in zip(names, STYLES, strict=False):
            points = [
                (row["experts"], row["step_x_limit"]) for row in rows if row["contestant"] == name
            ]
            axis.plot(*zip(*sorted(points), strict=True), style, label=name)
        axis.set(title=f"top-{k}, {dtype}", xlabel="experts", ylabel="time / limit")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.suptitle(
        f"MoE layer, forward + backward, {record['tokens']} tokens, d {record['dim']}, "
        f"ffn {record['ffn']} ({record['machine']}, {record['date'][:10]})",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    print(target)


if __name__ == "__main__":
    main()

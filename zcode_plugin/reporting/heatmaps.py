"""Where tokens go: tables of experts by language and by objective, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zcode_plugin.checkpoint.statistics import ExpertStatistics
from zcode_plugin.data.objectives import KNOWN
from zcode_plugin.reporting.plots import TEXT, Picture, render

BLOCK = 16  # experts in a picture: more would be too small to read
_CELL = (0.34, 0.27)  # inches
_MARGINS = (1.35, 0.95)
_LINES: dict[str, Any] = {"edgecolors": "white", "linewidth": 1}


@dataclass(frozen=True)
class Shares:
    """Percentages of the tokens of each row that are sent to each expert of a layer.

    Attributes:
        run: its name, where there are several.
    """

    layer: str
    rows: Mapping[str, Sequence[float]]
    run: str = ""

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(next(iter(self.rows.values())))


def language(row: Mapping[str, Any]) -> str:
    """The language of the tokens: of a direction the source's in the encoder, else the target's."""
    src, _, tgt = row["pair"].partition("-")
    return str(tgt if tgt and not row["layer"].startswith("encoder") else src)


def objective(row: Mapping[str, Any]) -> str:
    """The objective, of a stock task `mt`."""
    return str(row["objective"] or "mt")


def shares(statistics: ExpertStatistics, group: Callable[[Mapping[str, Any]], str]) -> list[Shares]:
    """By layer, how the assignments of each group are spread over the experts, in percent."""
    sums: dict[str, dict[str, list[float]]] = {}
    for row in statistics.rows:
        rows = sums.setdefault(row["layer"], {})
        before = rows.get(group(row), [0.0] * len(row["load"]))
        rows[group(row)] = [a + b for a, b in zip(before, row["load"], strict=True)]
    return [
        Shares(
            layer,
            {
                name: [100 * load / max(sum(loads), 1) for load in loads]
                for name, loads in sorted(rows.items(), key=_place)
            },
        )
        for layer, rows in sums.items()
    ]


def _place(item: tuple[str, object]) -> tuple[int, str]:
    """Objectives in their own order, languages in that of the alphabet."""
    name = item[0]
    return (KNOWN.index(name) if name in KNOWN else len(KNOWN), name)


def heatmaps(what: str, tables: Sequence[Shares]) -> list[Picture]:
    """Pictures of the tables, all in one scale; layers with many experts in several blocks.

    Args:
        what: the rows, such as `language`.
        tables: see `shares`.
    """
    top = max((max(row) for table in tables for row in table.rows.values()), default=0.0)
    return [
        _heatmap(what, table, first, top)
        for table in tables
        for first in range(0, table.experts, BLOCK)
    ]


def _heatmap(what: str, table: Shares, first: int, top: float) -> Picture:
    last = min(first + BLOCK, table.experts)
    values = [list(row[first:last]) for row in table.rows.values()]
    blocks = "" if table.experts <= BLOCK else f", experts {first} to {last - 1}"
    run = f"{table.run}: " if table.run else ""
    title = f"{run}{table.layer}{blocks}"
    size = (_MARGINS[0] + _CELL[0] * (last - first), _MARGINS[1] + _CELL[1] * len(values))

    def draw(figure: Any, axes: Any) -> None:
        # One hue, light to dark, and pale enough for dark numbers on most cells.
        image = axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=1.15 * top, **_LINES)
        axes.invert_yaxis()
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                colour = "white" if value > 0.85 * top else TEXT
                axes.text(
                    x + 0.5,
                    y + 0.5,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    color=colour,
                    fontsize=8,
                )
        axes.set_xticks([x + 0.5 for x in range(last - first)], range(first, last))
        axes.set_yticks([y + 0.5 for y in range(len(values))], table.rows)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_title(title)
        axes.set_xlabel("expert")
        axes.set_ylabel(what)
        figure.colorbar(image, ax=axes, label="% of tokens", aspect=12, shrink=0.95)

    parts = [what, table.run, table.layer, str(first) if blocks else ""]
    file = "_".join(filter(None, parts)).replace(".", "_").replace("/", "_")
    return render(file, title, _describe(what, title, table), size, draw)


def _describe(what: str, title: str, table: Shares) -> str:
    """The table in words: each row's busiest expert."""
    parts = [
        f"{name}: most to expert {max(range(len(row)), key=row.__getitem__)} ({max(row):.0f}%)"
        for name, row in table.rows.items()
    ]
    return f"Heatmap of {title}: percent of tokens by expert and {what}. " + "; ".join(parts) + "."

"""Line charts, drawn with matplotlib, for eyes of every kind: dark on white, and no two lines of a
chart differ in colour alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from zcode_plugin.errors import UserError

DPI = 200
CSS_DPI = 96  # pixels of a page in an inch
# Okabe and Ito's palette for all kinds of colour vision (https://jfly.uni-koeln.de/color/), without
# its yellow, too pale on white, and its black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = {
    "o": "circles",
    "s": "squares",
    "^": "triangles",
    "D": "diamonds",
    "v": "triangles that point down",
    "P": "plus signs",
    "X": "crosses",
}
MARKS = 8  # about so many markers tell lines apart without hiding them
_LEGEND_LINE = 0.19  # inches
TEXT, FAINT = "#1a1a1a", "#c8c8c8"
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": TEXT,
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "savefig.facecolor": "white",
    "svg.hashsalt": "zcode",
}


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        label: in the legend.
        x, y: points; where y is no number the line has a gap.
        hue: number of the colour and of the marker.
        dash: number of the line's style.
        sparse: points that stand apart, such as validations: each has a marker.
        context: a faint line without a label, for comparison.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    hue: int = 0
    dash: int = 0
    sparse: bool = False
    context: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines on the same axes.

    Attributes:
        name: of the file, without suffix.
        title: above it.
        x_label, y_label: with units.
        series: the lines.
        ticks: words for x = 0, 1, 2, ...; numbers without.
        y_range: limits; by default those of the lines.
        size: inches, without the legend below.
        legend: whether there is one where there are several lines.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    ticks: Sequence[str] = ()
    y_range: tuple[float, float] | None = None
    size: tuple[float, float] = (4.9, 2.6)
    legend: bool = True


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its PNG, its width on a page in pixels, and what it shows, in words."""

    name: str
    title: str
    png: bytes
    width: int
    alt: str


def finite_range(values: Iterable[float]) -> tuple[float, float] | None:
    """Limits that show all values but NaN and infinite ones; None where there are no others."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    margin = 0.06 * (max(finite) - min(finite)) or 0.1
    return min(finite) - margin, max(finite) + margin


def require_matplotlib() -> None:
    """Say how to install what draws.

    Raises:
        UserError: it is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "drawing needs matplotlib: pip install matplotlib (or pip install '.[report]')"
        ) from None


def render(
    name: str, title: str, alt: str, size: tuple[float, float], draw: Callable[[Any, Any], None]
) -> Picture:
    """Draw a figure.

    Args:
        name, title, alt: see `Picture`.
        size: inches.
        draw: gets the figure and its axes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, figure.add_subplot())
        buffer = BytesIO()
        # Nothing that differs from one drawing to the next, such as a version.
        figure.savefig(buffer, dpi=DPI, format="png", metadata={"Software": None})
    return Picture(name, title, buffer.getvalue(), round(size[0] * CSS_DPI), alt)


def line_chart(chart: Chart) -> Picture:
    """Draw lines."""

    def draw(figure: Any, axes: Any) -> None:
        for series in chart.series:
            _line(axes, series)
        axes.set_title(chart.title)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        _limits(axes, chart)
        if labels:
            figure.legend(loc="outside lower left", ncols=columns, fontsize=8.5)

    labels = [s.label for s in chart.series if s.label and not s.context]
    if len(labels) == 1 or not chart.legend:
        labels = []
    columns = _columns(labels)
    width, height = chart.size
    size = (width, height + _LEGEND_LINE * math.ceil(len(labels) / columns))
    return render(chart.name, chart.title, describe(chart), size, draw)


def _line(axes: Any, series: Series) -> None:
    if series.context:
        axes.plot(series.x, series.y, color=FAINT, linewidth=0.8, zorder=1)
        return
    every = 1 if series.sparse else max(1, len(series.x) // MARKS)
    axes.plot(
        series.x,
        series.y,
        label=series.label,
        color=COLOURS[series.hue % len(COLOURS)],
        linestyle=DASHES[series.dash % len(DASHES)],
        linewidth=1.6,
        marker=marker(series.hue)[0],
        markersize=4 if series.sparse else 3.5,
        markevery=(
            0 if series.sparse else (series.hue * every // 3) % max(1, len(series.x)),
            every,
        ),
        markerfacecolor="white" if series.dash else None,
        zorder=2,
    )


def _limits(axes: Any, chart: Chart) -> None:
    if chart.ticks:
        axes.set_xticks(range(len(chart.ticks)), chart.ticks)
    else:
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=4 if chart.size[0] < 3 else 6)
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    elif all(value >= 0 for series in chart.series for value in _finite(series.y)):
        low, high = axes.get_ylim()
        if low < 0.35 * high:  # else the lines would lie flat at the top
            axes.set_ylim(0, high)


def marker(hue: int) -> tuple[str, str]:
    """The marker of a colour, as matplotlib names it and in words."""
    return list(MARKERS.items())[hue % len(MARKERS)]


def _columns(labels: Sequence[str]) -> int:
    """Columns of a legend that is no wider than the axes."""
    widest = max(map(len, labels), default=0) + 9
    return max(1, min(len(labels), 60 // widest))


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def describe(chart: Chart) -> str:
    """A chart in words: of each line where it begins, where it ends and its range."""
    parts = [f"Line chart: {chart.title}; {chart.y_label} against {chart.x_label}."]
    for series in chart.series:
        values = _finite(series.y)
        if not values or series.context:
            continue
        start, end = values[0], values[-1]
        parts.append(
            f"{series.label}: {start:.4g} at first, {end:.4g} at last, "
            f"between {min(values):.4g} and {max(values):.4g}."
        )
    return " ".join(parts)

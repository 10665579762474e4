"""Which lines of which logs a report shows, and on which axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from zcode_plugin.data.pairs import Pair
from zcode_plugin.evaluation.scores import GROUPS
from zcode_plugin.moe.load import POSITION_STARTS
from zcode_plugin.reporting.logs import EPOCH, TRAIN, Curve, TrainingLog
from zcode_plugin.reporting.plots import Chart, Series, finite_range
from zcode_plugin.reporting.runs import Run

BITS = "bits per target"
UPDATES = "updates"
OBJECTIVES = {
    "mt": "translation (mt)",
    "dae": "denoising (dae)",
    "mlm": "masked language modelling (mlm)",
    "electra": "replaced tokens (electra)",
}
# Of fewer tokens a share says nothing.
LEAST = 10
_PANEL = (2.35, 1.75)  # inches
# What the log knows of memory, by the names of fairseq, in GiB.
_MEMORY = {"gb_free": "free", "gb_total": "total", "cuda_gb_used": "used"}


@dataclass(frozen=True)
class Line:
    """A metric of a split, under a name for the legend; the split "" is that of training."""

    label: str
    split: str
    metric: str


def learning_charts(runs: Sequence[Run]) -> list[Chart]:
    """Training and validation loss of each objective, against updates and against time."""
    logs = _logs(runs)
    found = {name for _, log in logs for name in log.objectives()}
    metrics = [(f"{name}_nll_loss", text) for name, text in OBJECTIVES.items() if name in found]
    if not metrics:
        metrics = [("nll_loss", "loss without label smoothing")]
    if len(metrics) > 1:
        metrics.append(("loss", "weighted sum of the objectives, with label smoothing"))
    charts = []
    for metric, title in metrics:
        lines = [Line("training", "", metric), *_validations(runs, metric)]
        charts += [
            _chart(runs, f"{metric}_updates", title, BITS, lines),
            _timed(runs, f"{metric}_time", title, BITS, lines),
        ]
    return _drawn(charts)


def validation_charts(runs: Sequence[Run]) -> list[Chart]:
    """What validation tells beside losses: accuracy, and BLEU with `--eval-bleu`."""
    accuracies = [
        line for name in OBJECTIVES for line in _validations(runs, f"{name}_accuracy", name)
    ]
    return _drawn(
        [
            _chart(runs, "accuracy", "accuracy in validation", "% of targets", accuracies),
            _chart(runs, "bleu", "mean BLEU in validation", "BLEU", _validations(runs, "bleu")),
        ]
    )


def corpus_panels(runs: Sequence[Run]) -> dict[str, list[Chart]]:
    """By objective, a small chart of each direction's or language's validation loss."""
    logs = _logs(runs)
    panels: dict[str, list[Chart]] = {}
    for objective in OBJECTIVES:
        names = {name for _, log in logs for name in log.corpora(objective)}
        if len(names) < 2:
            continue
        curves = {
            (place, name): log.curve(split, f"{objective}_nll_loss_{name}")
            for name in names
            for place, log in logs
            for split in log.validations[:1]
        }
        y_range = finite_range(value for curve in curves.values() for value in curve.values)
        panels[objective] = [
            _panel(objective, name, curves, y_range, runs) for name in sorted(names, key=_by_group)
        ]
    return panels


def state_charts(runs: Sequence[Run]) -> list[Chart]:
    """Learning rate, gradient norm, speed and memory."""
    memory = [Line(label, "", name) for name, label in _MEMORY.items()]
    charts = [
        _chart(runs, "lr", "learning rate", "learning rate", [Line("", "", "lr")]),
        _chart(runs, "gnorm", "gradient norm", "L2 norm", [Line("", "", "gnorm")]),
        _chart(runs, "wps", "speed", "target tokens per second", [Line("", "", "wps")]),
        _chart(runs, "memory", "memory", "GiB", memory),
        _chart(runs, "loss_scale", "loss scale (fp16)", "factor", [Line("", "", "loss_scale")]),
    ]
    return _drawn(charts)


def expert_charts(runs: Sequence[Run]) -> list[Chart]:
    """Load balance, drops, idle experts and entropy of the gate, over updates of training."""

    def by_objective(metric: str) -> list[Line]:
        names = [
            name
            for name in OBJECTIVES
            if any(_has(log, f"{name}_{metric}") for _, log in _logs(runs))
        ]
        return [
            Line("all" if names else "", "", metric),
            *(Line(name, "", f"{name}_{metric}") for name in names),
        ]

    balance = [
        Line("busiest fifth of the experts", "", "expert1_balance_top"),
        Line("idlest fifth", "", "expert1_balance_bottom"),
    ]
    tokens = "% of tokens"
    charts = [
        _chart(runs, "balance", "load of the experts", tokens, balance),
        _chart(runs, "dropped", "dropped tokens", tokens, by_objective("overflow_expert1")),
        _chart(
            runs, "gate_loss", "balance loss of the gate (1: balanced)", "loss",
            by_objective("moe_gate_loss"),
        ),
        _chart(runs, "entropy", "entropy of the gate", "nats", by_objective("entropy_gating")),
        _chart(
            runs, "unused", "experts without a token", "experts per layer and batch",
            [Line("", "", "unused_expert1_count")],
        ),
    ]  # fmt: skip
    return _drawn(charts)


def position_chart(runs: Sequence[Run]) -> list[Chart]:
    """Share of the tokens that are dropped, by their position; none of less than `LEAST` tokens."""
    series = []
    for place, run in enumerate(runs):
        for number, side in enumerate(("encoder", "decoder")):
            asked, dropped = _by_position(run, side)
            if not any(asked):
                continue
            counts = zip(asked, dropped, strict=True)
            rates = [100 * d / a if a >= LEAST else float("nan") for a, d in counts]
            label = side if len(runs) == 1 else f"{run.name}, {side}"
            hue = number if len(runs) == 1 else place
            series.append(Series(label, range(len(rates)), rates, hue, number, sparse=True))
    # Buckets without a share would only make the others narrow.
    last = max((i for s in series for i, y in enumerate(s.y) if y == y), default=0)
    series = [replace(s, x=s.x[: last + 1], y=s.y[: last + 1]) for s in series]
    chart = Chart(
        "positions", "dropped tokens by position", "position in the sentence", "% of tokens",
        series, ticks=position_names()[: last + 1],
    )  # fmt: skip
    return _drawn([chart])


def position_names() -> list[str]:
    """`0`, `1`, `2-3`, ... `256+`: the buckets of positions."""
    ends = [*(start - 1 for start in POSITION_STARTS[1:]), None]
    return [
        f"{start}+" if end is None else str(start) if start == end else f"{start}\N{EN DASH}{end}"
        for start, end in zip(POSITION_STARTS, ends, strict=True)
    ]


def _by_position(run: Run, side: str) -> tuple[list[int], list[int]]:
    """Assignments asked for and dropped in all layers of a side, by bucket."""
    asked, dropped = ([0] * len(POSITION_STARTS) for _ in range(2))
    for row in run.statistics.rows if run.statistics else ():
        if row["layer"].startswith(side) and "asked_by_sentence_position" in row:
            asked = [a + b for a, b in zip(asked, row["asked_by_sentence_position"], strict=True)]
            dropped = [
                a + b for a, b in zip(dropped, row["dropped_by_sentence_position"], strict=True)
            ]
    return asked, dropped


def _logs(runs: Sequence[Run]) -> list[tuple[int, TrainingLog]]:
    return [(place, run.log) for place, run in enumerate(runs) if run.log is not None]


def _has(log: TrainingLog, metric: str) -> bool:
    return metric in log.names(log.training)


def _validations(runs: Sequence[Run], metric: str, start: str = "") -> list[Line]:
    """A line for each validation split that any run has the metric of."""
    splits = dict.fromkeys(
        split for _, log in _logs(runs) for split in log.validations if metric in log.names(split)
    )
    return [
        Line(" ".join(filter(None, (start, _split_name(split, start)))), split, metric)
        for split in splits
    ]


def _split_name(split: str, start: str) -> str:
    """What the legend calls a split; the usual one needs no name beside another word."""
    if split == "valid":
        return "" if start else "validation"
    return split


def _chart(
    runs: Sequence[Run],
    name: str,
    title: str,
    y_label: str,
    lines: Sequence[Line],
    x_label: str = UPDATES,
    x_of: Callable[[TrainingLog, Curve], Sequence[float]] = lambda log, curve: curve.updates,
) -> Chart:
    """The lines of all runs; colours tell runs apart where there are several."""
    series = []
    for place, log in _logs(runs):
        for number, line in enumerate(lines):
            split = line.split or log.training
            curve = log.curve(split, line.metric)
            if not curve.updates:
                continue
            parts = [runs[place].name] * (len(runs) > 1) + [line.label] * bool(line.label)
            series.append(
                Series(
                    ", ".join(parts) or title,
                    x_of(log, curve),
                    curve.values,
                    hue=place if len(runs) > 1 else number,
                    dash=number,
                    sparse=split not in (TRAIN, EPOCH),
                )
            )
    return Chart(name, title, x_label, y_label, series)


def _timed(
    runs: Sequence[Run], name: str, title: str, y_label: str, lines: Sequence[Line]
) -> Chart:
    """The same against time, of runs whose log has it."""
    timed = [run if run.log and run.log.seconds else None for run in runs]
    longest = max((max(run.log.seconds.values()) for run in timed if run and run.log), default=0)
    unit, size = ("hours", 3600) if longest >= 7200 else ("minutes", 60)

    def x_of(log: TrainingLog, curve: Curve) -> list[float]:
        if not log.seconds:
            return [float("nan")] * len(curve.updates)
        return [seconds / size for seconds in log.seconds_at(curve.updates)]

    chart = _chart(runs, name, title, y_label, lines, f"{unit} of training", x_of)
    kept = [series for series in chart.series if any(x == x for x in series.x)]
    return Chart(name, title, chart.x_label, y_label, kept)


def _panel(
    objective: str,
    name: str,
    curves: dict[tuple[int, str], Curve],
    y_range: tuple[float, float] | None,
    runs: Sequence[Run],
) -> Chart:
    context = [
        Series("", curve.updates, curve.values, context=True)
        for (_, other), curve in curves.items()
        if other != name
    ]
    own = [
        Series(runs[place].name, curve.updates, curve.values, place, place, sparse=True)
        for (place, other), curve in curves.items()
        if other == name and curve.updates
    ]
    last = " / ".join(f"{series.y[-1]:.2f}" for series in own)
    file = f"{objective}_{name}"
    title = f"{name}   {last}"
    return Chart(
        file, title, UPDATES, BITS, [*context, *own], y_range=y_range, size=_PANEL, legend=False
    )


def _by_group(name: str) -> tuple[int, str]:
    src, _, tgt = name.partition("-")
    return (GROUPS.index(Pair(src, tgt).group) if tgt else len(GROUPS), name)


def _drawn(charts: Iterable[Chart]) -> list[Chart]:
    """Those in which there is anything to see."""
    return [chart for chart in charts if chart.series]


def typical(curve: Curve) -> float | None:
    """Median of the values; None without any."""
    values = [value for value in curve.values if value == value]
    return median(values) if values else None

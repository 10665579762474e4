"""What the experts of a checkpoint do on data: gathered once, written, read by other verbs."""

from __future__ import annotations

import csv
import io as text_io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.errors import UserError

FORMAT = "zcode-stats-1"
# Sums for each expert, by the name under which they are stored.
MEASURES = ("load", "weight", "norm")

_ROW_KEYS = {
    *("layer", "objective", "pair", "tokens", "assignments", "dropped", "entropy", "kept"),
    *MEASURES,
}


@dataclass(frozen=True)
class LayerLoad:
    """How busy the experts of a layer were, over all objectives and pairs.

    Attributes:
        tokens: routed.
        experts: number of experts.
        busiest, idlest: shares of the assignments of the busiest and of the idlest expert.
        dropped: share of the assignments that found their expert full.
        entropy: mean entropy of the gate's distribution, in nats.
    """

    layer: str
    tokens: int
    experts: int
    busiest: float
    idlest: float
    dropped: float
    entropy: float


@dataclass(frozen=True)
class ExpertStatistics:
    """Sums over the tokens of a split, for each layer, objective and pair.

    Attributes:
        rows: as `LoadStatistics.rows` gives them, `layer` as `encoder.layers.1`.
        origin: checkpoint, data, split and so on.
    """

    rows: Sequence[Mapping[str, Any]]
    origin: Mapping[str, Any]

    def pairs(self) -> list[str]:
        """Language pairs, and languages of monolingual data, in the order of the rows."""
        return list(dict.fromkeys(row["pair"] for row in self.rows))

    def totals(self, measure: str, pairs: Iterable[str] = ()) -> dict[str, list[float]]:
        """Sum of a measure for each expert of each layer; over all pairs, or those named.

        Args:
            measure: of `MEASURES`.
            pairs: as in `pairs()`.

        Raises:
            UserError: there is no such pair.
        """
        chosen = list(pairs)
        for pair in chosen:
            if pair not in self.pairs():
                raise UserError(
                    f"--pairs: the statistics have no {pair}, but {', '.join(self.pairs())}"
                )
        totals: dict[str, list[float]] = {}
        for row in self.rows:
            if not chosen or row["pair"] in chosen:
                sums = totals.setdefault(row["layer"], [0.0] * len(row[measure]))
                totals[row["layer"]] = [a + b for a, b in zip(sums, row[measure], strict=True)]
        return totals

    def layers(self) -> list[LayerLoad]:
        """The load of each layer, in the order of the rows."""
        loads = []
        for layer, sums in self.totals("load").items():
            own = [row for row in self.rows if row["layer"] == layer]
            tokens = sum(row["tokens"] for row in own)
            asked = max(sum(row["assignments"] for row in own), 1)
            loads.append(
                LayerLoad(
                    layer=layer,
                    tokens=tokens,
                    experts=len(sums),
                    busiest=max(sums) / asked,
                    idlest=min(sums) / asked,
                    dropped=sum(row["dropped"] for row in own) / asked,
                    entropy=sum(row["entropy"] * row["tokens"] for row in own) / max(tokens, 1),
                )
            )
        return loads

    def to_json(self) -> str:
        """The whole, as text."""
        record = {"format": FORMAT, **self.origin, "rows": list(self.rows)}
        return json.dumps(record, ensure_ascii=False, indent=1) + "\n"

    def to_csv(self) -> str:
        """A line for each layer, objective, pair and expert."""
        text = text_io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["layer", "objective", "pair", "expert", "tokens", *MEASURES, "kept"])
        for row in self.rows:
            for expert, values in enumerate(
                zip(*(row[name] for name in (*MEASURES, "kept")), strict=True)
            ):
                names = (row["layer"], row["objective"], row["pair"])
                writer.writerow([*names, expert, row["tokens"], *values])
        return text.getvalue()


def read_statistics(path: Path) -> ExpertStatistics:
    """What `zcode stats` wrote.

    Raises:
        UserError: the file cannot be read, or is none of these.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise UserError(f"{path} is no file of zcode stats: gather one with zcode stats CKPT DATA")
    rows = record.pop("rows", None)
    if not isinstance(rows, list) or not all(map(_is_row, rows)) or not rows:
        raise UserError(f"{path} is damaged: gather it again with zcode stats CKPT DATA")
    return ExpertStatistics(rows, record)


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and row.keys() >= _ROW_KEYS

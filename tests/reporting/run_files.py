"""Folders of runs as users have them, in small: literal logs, statistics and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIGNATURES = {
    "bleu_signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0",
    "chrf_signature": "nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0",
}


def train_line(updates: int, wall: float, loss: float | str = 5.0, **metrics: object) -> str:
    """A record of the last updates, as stock writes it: numbers are strings."""
    values = {"mt_nll_loss": loss, "loss": loss, **metrics, "num_updates": updates, "wall": wall}
    texts = {name: str(value) for name, value in values.items()}
    return json.dumps({"epoch": 1, "update": round(updates / 100, 3), **texts})


def valid_line(updates: int, **metrics: object) -> str:
    """A record of a validation."""
    values = {**metrics, "num_updates": updates}
    return json.dumps({"epoch": 1, **{f"valid_{name}": str(v) for name, v in values.items()}})


def write_log(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def full_log(path: Path) -> Path:
    """Two objectives, two directions, three validations, metrics of experts."""
    lines = []
    for number in range(1, 13):
        lines.append(
            train_line(
                10 * number, 6.0 * number, 12 - number / 2, dae_nll_loss=11 - number / 3,
                lr=number / 1000, gnorm="nan" if number == 4 else 1 + 1 / number, wps=1000,
                gb_free=12.5, moe_gate_loss=1.2, overflow_expert1=30 / number,
                mt_overflow_expert1=29 / number, entropy_gating=1.9, expert1_balance_top=40,
                expert1_balance_bottom=10, unused_expert1_count=0.1,
            )
        )  # fmt: skip
        if number % 4 == 0:
            loss = 10 - number / 4
            names = {"mt_nll_loss_de-en": loss, "mt_nll_loss_en-de": loss + 1, "mt_accuracy": 30}
            lines.append(valid_line(10 * number, mt_nll_loss=loss, dae_nll_loss=9, **names))
    return write_log(path, lines)


def stats_row(layer: str, objective: str, pair: str, load: list[int]) -> dict[str, Any]:
    """A row of zcode stats: a token of eight is dropped, those at the fifth position and later."""
    asked = sum(load)
    return {
        "layer": layer, "objective": objective, "pair": pair, "tokens": asked,
        "assignments": asked, "dropped": asked // 8, "entropy": 1.0, "load": load, "kept": load,
        "weight": load, "norm": load,
        "asked_by_sentence_position": [asked // 4] * 4 + [0] * 6,
        "dropped_by_sentence_position": [0, 0, 0, asked // 8] + [0] * 6,
    }  # fmt: skip


def write_stats(path: Path) -> Path:
    rows = [
        stats_row(layer, objective, pair, load)
        for layer in ("encoder.layers.1", "decoder.layers.1")
        for objective, pair, load in (
            ("mt", "de-en", [8, 16, 24, 32]),
            ("mt", "en-de", [40, 0, 0, 40]),
            ("dae", "de", [20, 20, 20, 20]),
        )
    ]
    record = {
        "format": "zcode-stats-1", "checkpoint": "run/model.pt", "updates": 120, "data": "data",
        "subset": "valid", "capacity_factor": 1.25, "rows": rows,
    }  # fmt: skip
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def write_scores(path: Path, plus: float = 0.0, checkpoint: str = "run/model.pt") -> Path:
    entry = {"copy_bleu": None, "sentences": 160, "unknown_references": 0, **SIGNATURES}
    record = {
        "format": 1, "date": "2026-01-01T00:00:00+00:00", "data": "data",
        "checkpoint": checkpoint, "updates": 120, "subset": "test",
        "means": {
            "X->en": {"directions": 1, "bleu": 20.0 + plus, "chrf": 40.0},
            "en->X": {"directions": 1, "bleu": 10.0 + plus, "chrf": 30.0},
            "all": {"directions": 2, "bleu": 15.0 + plus, "chrf": 35.0},
        },
        "directions": {
            "en-de": {"bleu": 10.0 + plus, "chrf": 30.0, **entry},
            "de-en": {"bleu": 20.0 + plus, "chrf": 40.0, **entry},
        },
    }  # fmt: skip
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def write_run(folder: Path, plus: float = 0.0) -> Path:
    """A folder with everything."""
    full_log(folder / "train.log")
    write_stats(folder / "stats.json")
    write_scores(folder / "scores.json", plus)
    return folder

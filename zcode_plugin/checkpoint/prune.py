"""Keeps some experts of each layer, with their rows of the gate, and leaves the others out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from zcode_plugin.checkpoint import config, names
from zcode_plugin.checkpoint.gather import Gathered
from zcode_plugin.checkpoint.statistics import ExpertStatistics
from zcode_plugin.checkpoint.tensors import weights
from zcode_plugin.errors import UserError

# What `--by` names, as `ExpertStatistics` calls it.
CRITERIA = {"utilisation": "load", "gate-weight": "weight", "activation-norm": "norm"}

Scores = Mapping[str, Sequence[float]]
Kept = dict[str, list[int]]


@dataclass(frozen=True)
class Budget:
    """How many experts stay.

    Attributes:
        keep: of each layer, or on average of all layers.
        across: rank the experts of all layers together, so that layers keep different numbers.
        ratio: (encoder, decoder): layers of the encoder keep as many to those of the decoder.
        least: every layer keeps at least so many.
    """

    keep: Fraction
    across: bool = False
    ratio: tuple[float, float] | None = None
    least: int = 1


def parse_keep(text: str, experts: Mapping[str, int]) -> Fraction:
    """`"4"` or `"50%"` of the experts of each layer.

    Raises:
        UserError: it is neither; or a share that is no whole number of experts; or too many.
    """
    fewest = min(experts.values())
    try:
        keep = Fraction(text[:-1]) / 100 * fewest if text.endswith("%") else Fraction(int(text))
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"--keep {text}: give a number of experts, or a share such as 50%"
        ) from None
    if text.endswith("%") and len({*experts.values()}) > 1:
        raise UserError(f"--keep {text}: layers have different numbers of experts; give a number")
    if keep < 1 or keep > fewest or (keep.denominator != 1 and text.endswith("%")):
        raise UserError(
            f"--keep {text} is {float(keep):g} of {fewest} experts: give a whole number from 1 to "
            f"{fewest}"
        )
    return keep


def scores_of(statistics: ExpertStatistics, criterion: str, pairs: Sequence[str]) -> Scores:
    """The worth of each expert, as a share of its layer's sum, by the layer's entry name."""
    totals = statistics.totals(CRITERIA[criterion], pairs)
    return {
        f"{layer}.moe_layer": [value / max(sum(values), 1e-30) for value in values]
        for layer, values in totals.items()
    }


def random_scores(experts: Mapping[str, int], seed: int) -> Scores:
    """A random order of each layer's experts."""
    draw = torch.Generator().manual_seed(seed)
    return {layer: torch.rand(count, generator=draw).tolist() for layer, count in experts.items()}


def choose(experts: Mapping[str, int], scores: Scores, budget: Budget) -> Kept:
    """The experts of each layer that stay, in ascending order.

    Of experts that are worth the same the first stays.

    Raises:
        UserError: the scores are of other layers or experts.
    """
    for layer, count in experts.items():
        if len(scores.get(layer, ())) != count:
            raise UserError(
                f"the statistics have {len(scores.get(layer, ()))} experts of {layer}, the "
                f"checkpoint has {count}: gather them with zcode stats on this checkpoint"
            )
    kept: Kept = {}
    for layers, total in _shares(experts, budget):
        if budget.across:
            kept.update(_best_across(layers, scores, total, budget.least))
        else:
            each = total // len(layers)
            kept.update({layer: _best(scores[layer], each) for layer in layers})
    return kept


def _shares(experts: Mapping[str, int], budget: Budget) -> list[tuple[dict[str, int], int]]:
    """Groups of layers, and how many experts each group keeps."""
    whole = round(budget.keep * len(experts))
    if budget.ratio is None:
        return [(dict(experts), whole)]
    groups = {
        side: {layer: count for layer, count in experts.items() if layer.startswith(side)}
        for side in ("encoder", "decoder")
    }
    if not all(groups.values()):
        raise UserError("--ratio needs experts in encoder and decoder: leave it out")
    weight = {
        side: part * len(groups[side]) for side, part in zip(groups, budget.ratio, strict=True)
    }
    shares = []
    for side, layers in groups.items():
        wanted = whole * weight[side] / sum(weight.values())
        if not budget.across:
            wanted = len(layers) * round(wanted / len(layers))
        most, least = sum(layers.values()), budget.least * len(layers)
        if not budget.across:  # each layer keeps as many
            most = len(layers) * min(layers.values())
        if not least <= round(wanted) <= most:
            raise UserError(
                f"--ratio gives the {side} {round(wanted)} experts, but it can keep {least} to "
                f"{most}: choose a ratio nearer to 1, or another --keep"
            )
        shares.append((layers, round(wanted)))
    return shares


def _best(scores: Sequence[float], count: int) -> list[int]:
    order = sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))
    return sorted(order[:count])


def _best_across(layers: Mapping[str, int], scores: Scores, total: int, least: int) -> Kept:
    """The best of all layers together, once each layer has its `least` best."""
    kept = {layer: _best(scores[layer], least) for layer in layers}
    rest = [
        (-score, layer, expert)
        for layer in layers
        for expert, score in enumerate(scores[layer])
        if expert not in kept[layer]
    ]
    for _, layer, expert in sorted(rest)[: total - least * len(layers)]:
        kept[layer].append(expert)
    return {layer: sorted(chosen) for layer, chosen in kept.items()}


def prune(gathered: Gathered, kept: Mapping[str, Sequence[int]]) -> None:
    """Leave all other experts out of a checkpoint for one process, in place.

    Those that stay are numbered anew in the order given. The checkpoint remembers their former
    numbers as `kept_experts`.
    """
    state = gathered.state
    for tensors in weights(state):
        pruned = select(tensors, kept)
        tensors.clear()
        tensors.update(pruned)
    former = state.get("kept_experts") or {}
    state["kept_experts"] = {
        layer: [former[layer][expert] if layer in former else expert for expert in chosen]
        for layer, chosen in kept.items()
    }
    config.set_expert_counts(state, {layer: len(chosen) for layer, chosen in kept.items()})


def select(tensors: Mapping[str, Any], kept: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The entries of a model with these experts alone, numbered in the order given."""
    number = {(layer, old): new for layer, chosen in kept.items() for new, old in enumerate(chosen)}
    rows = {key: chosen for layer, chosen in kept.items() for key in names.gate_rows(layer)}
    selected = {}
    for key, value in tensors.items():
        parts = names.parse_expert_key(key)
        if parts is not None:
            new = number.get((parts.layer, parts.expert))
            if new is not None:
                selected[str(names.ExpertKey(parts.layer, new, parts.parameter))] = value
        elif key in rows:
            selected[key] = value[list(rows[key])]
        else:
            selected[key] = value
    return selected

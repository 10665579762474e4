"""Makes the expert weights of a checkpoint integers, for a smaller file to translate with."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zcode_plugin.checkpoint import config, names
from zcode_plugin.checkpoint.gather import gather_whole
from zcode_plugin.checkpoint.tensors import WEIGHTS_IN_EXTRA_STATE, count_bytes
from zcode_plugin.errors import UserError
from zcode_plugin.moe.quantised import dequantise, quantise

WEIGHTS = ("fc1.weight", "fc2.weight")


@dataclass
class LayerReport:
    """The expert weights of one MoE layer.

    Attributes:
        errors: of each matrix, the norm of its change over its own norm (Frobenius).
        bytes_before: of the weights.
        bytes_after: of the integers and their scales.
    """

    errors: list[float] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True)
class Quantisation:
    """A quantised checkpoint and what was done.

    Attributes:
        state: the checkpoint, for one process.
        files: what it was read from.
        bits: of an expert's weight.
        layers: reports by the name of the layer, `encoder.layers.1.moe_layer`.
        other_tensors, other_bytes: of the model's entries that stay as they are.
        dropped: what was left out besides the optimizer's state: copies of the weights, by name.
    """

    state: dict[str, Any]
    files: list[Path]
    bits: int
    layers: dict[str, LayerReport]
    other_tensors: int
    other_bytes: int
    dropped: list[str]


def quantise_checkpoint(path: Path, bits: int) -> Quantisation:
    """Quantise the expert weights of a checkpoint.

    All else of the model stays, heads of objectives included. Copies of the weights that
    `--store-ema` wrote are left out, as is the optimizer's state: translation reads neither.

    Args:
        path: one file for all ranks, any rank's file, or the name without a rank.
        bits: 8 or 4.

    Raises:
        UserError: it is quantised already, has no experts, or not ones that can be quantised; and
            as `gather_whole`.
    """
    files, gathered = gather_whole(path)
    state = gathered.state
    before = config.expert_bits(state)
    if before != config.FLOAT_BITS:
        raise UserError(
            f"{files[0]} holds experts of {before} bits already: quantise the checkpoint it "
            "was made of"
        )
    if not gathered.experts:
        raise UserError(f"{files[0]} has no experts: there is nothing to quantise")
    others = {key: value for key, value in state["model"].items() if not _is_weight(key)}
    layers = _quantise_model(state["model"], bits, files[0])
    extra = state.get("extra_state") or {}
    dropped = [name for name in WEIGHTS_IN_EXTRA_STATE if extra.pop(name, None)]
    config.put(config.section(state, "model"), "moe_expert_bits", bits)
    return Quantisation(
        state, files, bits, layers, len(others), count_bytes(others.values()), dropped
    )


def _is_weight(key: str) -> bool:
    parts = names.parse_expert_key(key)
    return parts is not None and parts.parameter in WEIGHTS


def _quantise_model(
    model: MutableMapping[str, Any], bits: int, path: Path
) -> dict[str, LayerReport]:
    """Replace each weight of an expert, and add its scale."""
    layers: dict[str, LayerReport] = {}
    for key in [key for key in model if _is_weight(key)]:
        parts = names.parse_expert_key(key)
        assert parts is not None
        weight_OI = model[key]
        _check_weight(weight_OI, key, path)
        stored, scale_O = quantise(weight_OI, bits)
        model[key] = stored
        model[key.removesuffix("weight") + "scale"] = scale_O
        report = layers.setdefault(parts.layer, LayerReport())
        report.errors.append(_relative_error(weight_OI, stored, scale_O))
        report.bytes_before += weight_OI.nbytes
        report.bytes_after += stored.nbytes + scale_O.nbytes
    return layers


def _check_weight(weight: Any, key: str, path: Path) -> None:
    if not torch.is_tensor(weight) or weight.dim() != 2 or not weight.is_floating_point():
        raise UserError(f"{path}: {key} is no matrix of floats, as fc1 and fc2 of experts are")
    if not weight.isfinite().all():
        raise UserError(f"{path}: {key} holds inf or nan: take a checkpoint from before that")


def _relative_error(weight: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> float:
    weight = weight.float()
    norm = float(weight.norm())
    change = float((dequantise(stored, scale, weight.size(1)) - weight).norm())
    return change / norm if norm else 0.0

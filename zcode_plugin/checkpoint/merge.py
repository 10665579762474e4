"""Merges the files of all ranks of an expert-parallel run into one checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.errors import UserError

# fairseq's sinusoidal positions own a number that nothing ever sets; only its device is read.
_UNSET_BUFFER = "embed_positions._float_tensor"
# Entries of extra_state that are model weights too, experts included (--store-ema).
WEIGHTS_IN_EXTRA_STATE = ("ema", "ema_fp32_params")


@dataclass(frozen=True)
class MergeReport:
    """What was merged.

    Args:
        ranks: files read.
        updates: updates done at the time of the checkpoint.
        experts: number of experts of each MoE layer.
        parameters: elements of all weights; those that entries share are counted once.
    """

    ranks: int
    updates: int
    experts: dict[str, int]
    parameters: int


def merge(files: Mapping[int, Path]) -> tuple[dict[str, Any], MergeReport]:
    """Merge rank files; one is in memory at a time, beside what is merged already.

    The optimizer's state is left out: it belongs to one rank's parameters.

    Args:
        files: paths by rank, as `names.find_rank_files` gives them.

    Returns:
        A checkpoint that loads in one process, and what it was made of.

    Raises:
        UserError: a file is missing, damaged or of another run or update; shared weights differ;
            experts are missing.
    """
    merged = _load_part(next(iter(files.values())))
    _check_ranks(files, merged)
    first = files[0]
    for tensors in _weights(merged):
        for key, value in tensors.items():
            tensors[key] = _with_own_storage(value) if names.parse_expert_key(key) else value
    for rank, path in files.items():
        if rank > 0:
            part = _load_part(path)
            _check_same_save(merged, first, part, path)
            for whole, piece in zip(_weights(merged), _weights(part), strict=True):
                _absorb(whole, first, piece, path)
    experts = _count_experts(merged["model"], first)
    _make_whole(merged)
    return merged, MergeReport(
        ranks=len(files),
        updates=config.num_updates(merged),
        experts=experts,
        parameters=_count_parameters(merged["model"].values()),
    )


def _load_part(path: Path) -> dict[str, Any]:
    state = io.load(path)
    state.pop("last_optimizer_state", None)
    return state


def _weights(state: Mapping[str, Any]) -> list[MutableMapping[str, Any]]:
    """The model's weights, then each copy of them in the extra state."""
    extra = state.get("extra_state") or {}
    return [state["model"], *(extra[name] for name in WEIGHTS_IN_EXTRA_STATE if extra.get(name))]


def _check_ranks(files: Mapping[int, Path], state: Mapping[str, Any]) -> None:
    """All ranks of the run, and no other, have a file."""
    world = config.get(config.section(state, "distributed_training"), "distributed_world_size", 1)
    parallel = config.get(config.section(state, "model"), "expert_parallel_size", 1)
    expected = max(int(world), int(parallel))
    whole = names.without_rank(next(iter(files.values())))
    for rank in range(expected):
        if rank not in files:
            raise UserError(
                f"{names.with_rank(whole, rank)} is missing: the run had {expected} ranks, "
                "each of which wrote a file"
            )
    for rank, path in files.items():
        if rank >= expected:
            raise UserError(
                f"{path} is of another run: this one had {expected} ranks; move the file away"
            )


def _check_same_save(
    merged: Mapping[str, Any], first: Path, part: Mapping[str, Any], path: Path
) -> None:
    updates = config.num_updates(merged), config.num_updates(part)
    if updates[0] != updates[1]:
        raise UserError(
            f"{path} was saved after {updates[1]} updates but {first} after {updates[0]}: "
            "merge files of one save"
        )
    sizes = [
        config.get(config.section(state, "model"), "expert_parallel_size", 1)
        for state in (merged, part)
    ]
    if sizes[0] != sizes[1] or len(_weights(merged)) != len(_weights(part)):
        raise UserError(f"{path} is of another run than {first}: their options differ")


def _absorb(
    whole: MutableMapping[str, Any], first: Path, part: Mapping[str, Any], path: Path
) -> None:
    """Add the experts of `part` to `whole`; all else must be the same in both, bit for bit."""
    for key in whole:
        if key not in part and names.parse_expert_key(key) is None:
            raise UserError(f"{path} has no {key}, which {first} has: they are of different runs")
    for key, value in part.items():
        if key in whole:
            if not key.endswith(_UNSET_BUFFER) and not bit_equal(whole[key], value):
                raise UserError(
                    f"{path}: {key} differs from the same entry of another rank ({first.name} and "
                    "on): the files are not of one save"
                )
        elif names.parse_expert_key(key) is None:
            raise UserError(f"{path} has {key}, which {first} lacks: they are of different runs")
        else:
            whole[key] = _with_own_storage(value)


def bit_equal(a: Any, b: Any) -> bool:
    """Whether two entries are the same bit for bit: NaN equals NaN, and 0.0 is not -0.0."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)))


def _with_own_storage(value: Any) -> Any:
    """The tensor itself, or a copy where it is a part of more: saving would write all of that."""
    if not isinstance(value, torch.Tensor):
        return value
    shares = value.untyped_storage().nbytes() > value.numel() * value.element_size()
    return value.clone() if shares else value


def _count_experts(model: Mapping[str, Any], first: Path) -> dict[str, int]:
    """Experts of each MoE layer."""
    layers: dict[str, dict[int, set[str]]] = {}
    for key in model:
        if parts := names.parse_expert_key(key):
            experts = layers.setdefault(parts.layer, {})
            experts.setdefault(parts.expert, set()).add(parts.parameter)
    return {
        layer: _check_layer(layer, experts, model.get(names.gate_key(layer)), first)
        for layer, experts in layers.items()
    }


def _check_layer(layer: str, experts: Mapping[int, set[str]], gate: Any, first: Path) -> int:
    """The number of experts: all of 0 to E-1 with the same parameters, E as in the gate."""
    total = max(experts) + 1 if gate is None else len(gate)
    parameters = set().union(*experts.values())
    for expert in range(total):
        for parameter in sorted(parameters - experts.get(expert, set())):
            raise UserError(
                f"{first} and the other ranks' files hold no "
                f"{names.ExpertKey(layer, expert, parameter)}: they are not all of the run"
            )
    if max(experts) >= total:
        raise UserError(
            f"{first} and the other ranks' files hold expert {max(experts)} of {layer}, whose gate "
            f"knows {total} experts: they are of different runs"
        )
    return total


def _make_whole(state: MutableMapping[str, Any]) -> None:
    """Set the options that say that each rank has a file of its own to one process's."""
    model = config.section(state, "model")
    config.put(model, "base_layers", 0)
    config.put(model, "expert_parallel_size", 1)
    checkpoint = config.section(state, "checkpoint")
    if config.get(checkpoint, "checkpoint_suffix"):
        config.put(checkpoint, "checkpoint_suffix", "")


def _count_parameters(values: Iterable[Any]) -> int:
    tensors = {
        (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape): value.numel()
        for value in values
        if isinstance(value, torch.Tensor)
    }
    return sum(tensors.values())

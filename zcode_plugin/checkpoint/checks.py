"""Whether files are those of one save, and all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config, names
from zcode_plugin.checkpoint.tensors import weights
from zcode_plugin.errors import UserError


def check_ranks(files: list[Path], state: Mapping[str, Any]) -> None:
    """All ranks of the run that saved `state`, and no other, have a file.

    Raises:
        UserError: naming the file that is missing or too many.
    """
    is_part = names.is_part(files[0])
    expected = max(config.world_size(state), config.expert_parallel_size(state))
    if is_part:
        expected = config.model_parallel_size(state)
    what = f"{expected} {'tensor ' * is_part}ranks"
    named = names.with_part if is_part else names.with_rank
    ranks = {names.rank_of(path): path for path in files}
    for rank in range(expected):
        if rank not in ranks:
            missing = named(names.without_rank(files[0]), rank)
            _check_finished(missing)
            raise UserError(f"{missing} is missing: the run had {what}, each of which wrote a file")
    for found, path in ranks.items():
        if found not in range(expected):
            raise UserError(f"{path} is of another run: this one had {what}; move the file away")


def _check_finished(*paths: Path) -> None:
    for path in paths:
        if (partial := names.unfinished(path)).exists():
            raise UserError(
                f"{partial} is of a save that has not ended: wait for it; if it was interrupted, "
                "start the run once, which completes it"
            )


def check_name(state: Mapping[str, Any], path: Path) -> None:
    """A rank's file, or a shard, has the name that it was saved under.

    Raises:
        UserError: it has that of another rank.
    """
    shard = names.shard_of(path)
    if shard is not None:
        saved = config.get(config.section(state, "distributed_training"), "distributed_rank")
        if saved not in (None, shard):
            raise UserError(
                f"{path} was saved by rank {saved}: put the shard of rank {shard} in its place"
            )
        return
    rank = names.rank_of(path)
    suffix = config.get(config.section(state, "checkpoint"), "checkpoint_suffix")
    own = path.stem.removeprefix(names.without_rank(path).stem)
    if rank is not None and suffix not in (None, own):
        raise UserError(f"{path} was saved as {suffix}: put the file of rank {rank} in its place")


def check_same_save(
    first_state: Mapping[str, Any], first: Path, state: Mapping[str, Any], path: Path
) -> None:
    """Two rank files are of the same layout and update.

    Raises:
        UserError: they are not.
    """
    updates = config.num_updates(first_state), config.num_updates(state)
    if updates[0] != updates[1]:
        _check_finished(first, path)
        raise UserError(
            f"{path} was saved after {updates[1]} updates but {first} after {updates[0]}: "
            "use files of one save"
        )
    sizes = [
        (config.expert_parallel_size(one), config.model_parallel_size(one))
        for one in (first_state, state)
    ]
    if sizes[0] != sizes[1] or len(weights(first_state)) != len(weights(state)):
        raise UserError(f"{path} is of another run than {first}: their options differ")


def count_experts(model: Mapping[str, Any], first: Path) -> dict[str, int]:
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
    total = max(experts) + 1 if gate is None else gate.shape[0]
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

"""Reads the file or files of a checkpoint into one state: a union of keys, with its checks."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config, io, names, optimizer, shards
from zcode_plugin.checkpoint.names import UNSET_BUFFER
from zcode_plugin.checkpoint.optimizer import Moments
from zcode_plugin.checkpoint.slices import join
from zcode_plugin.checkpoint.tensors import bit_equal, with_own_storage
from zcode_plugin.errors import UserError
from zcode_plugin.parallel.sharding import OWNED

# Entries of extra_state that are model weights too, experts included (--store-ema).
WEIGHTS_IN_EXTRA_STATE = ("ema", "ema_fp32_params")


@dataclass(frozen=True)
class Gathered:
    """A whole checkpoint. Its tensors are mapped files: they take memory when they are read.

    Attributes:
        state: as one process would hold it, but with the options of the first rank; without the
            optimizer's state for parameters, which `moments` has.
        moments: that, by name; empty without an optimizer.
        experts: number of experts of each MoE layer.
        sharded: whether the files held parts of the optimizer's state (`--zero-sharding os`).
    """

    state: dict[str, Any]
    moments: Moments
    experts: dict[str, int]
    sharded: bool = False


def find_files(path: Path) -> list[Path]:
    """The files of a checkpoint: the one that is named, or those of all ranks in their order.

    Args:
        path: a file for all ranks, any rank's file, or the name of either without a rank.

    Raises:
        UserError: there are none.
    """
    if names.shard_of(path) is not None:
        raise UserError(
            f"{path} is a shard of all weights: join the shards with zcode merge {path}"
        )
    if names.rank_of(path) is None and path.is_file():
        return [path]
    files = names.find_rank_files(path)
    if not files:
        for shard in names.find_shards(path).values():
            raise UserError(f"there is no {path}, but shards: join them with zcode merge {shard}")
        other = names.with_rank(names.without_rank(path), 0)
        raise UserError(f"there is no {path}, nor {other}: name a checkpoint")
    return list(files.values())


def gather(files: list[Path], *, with_optimizer: bool) -> Gathered:
    """Read the files of a checkpoint, as `find_files` gives them.

    Raises:
        UserError: a file is missing, damaged or of another run or update; shared weights differ;
            experts are missing; the optimizer's state is asked for, but layers are sliced.
    """
    first = files[0]
    options = io.load_options(first)
    if names.rank_of(first) is not None:
        check_ranks(files, options)
    tensor = config.model_parallel_size(options)
    if tensor == 1 or names.rank_of(first) is None:
        return _union(files, with_optimizer)
    if with_optimizer:
        raise UserError(
            f"{first} is of a run with --model-parallel-size {tensor}, whose files hold slices of "
            "the weights and of their optimizer's state: only without the latter can they be "
            "joined, with zcode merge"
        )
    by_slice = [files[part::tensor] for part in range(tensor)]
    parts = [_union(of_a_slice, with_optimizer=False).state for of_a_slice in by_slice]
    firsts = [of_a_slice[0] for of_a_slice in by_slice]
    for part, path in zip(parts[1:], firsts[1:], strict=True):
        check_same_save(parts[0], first, part, path)
    for tensors, *others in zip(*(weights(part) for part in parts), strict=True):
        tensors.update(join([tensors, *others], firsts))
    return Gathered(parts[0], {}, count_experts(parts[0]["model"], first))


def _union(files: list[Path], with_optimizer: bool) -> Gathered:
    """Files that differ in their experts, and in what of the optimizer's state they own, as one."""
    first = files[0]
    whole, moments = _load(first, with_optimizer)
    union = shards.Union() if with_optimizer and shards.owned_by(whole) is not None else None
    if union is not None:
        union.add(whole, moments, first)
    for path in files[1:]:
        part, part_moments = _load(path, with_optimizer)
        check_same_save(whole, first, part, path)
        for tensors, piece in zip(weights(whole), weights(part), strict=True):
            _absorb(tensors, first, piece, path)
        if (shards.owned_by(part) is None) != (union is None) and with_optimizer:
            raise UserError(f"{path} is of another run than {first}: their optimizers differ")
        if union is None:
            _absorb_moments(moments, first, part_moments, path)
        else:
            union.add(part, part_moments, path)
    experts = count_experts(whole["model"], first)
    if union is None:
        return Gathered(whole, moments, experts)
    union.check_whole(whole, first)
    del whole["last_optimizer_state"][OWNED]
    return Gathered(whole, union.moments, experts, sharded=True)


def gather_whole(path: Path) -> tuple[list[Path], Gathered]:
    """A checkpoint as one process holds it, options included, and the files it was read from.

    Args:
        path: one file for all ranks, or any rank's file, or the name without a rank.

    Raises:
        UserError: there is none; and as `gather`.
    """
    files = find_files(path)
    gathered = gather(files, with_optimizer=False)
    for tensors in weights(gathered.state):
        for key, value in tensors.items():
            tensors[key] = with_own_storage(value) if names.parse_expert_key(key) else value
    config.set_layout(gathered.state, config.world_size(gathered.state), parallel=1, rank=0)
    return files, gathered


def _load(path: Path, with_optimizer: bool) -> tuple[dict[str, Any], Moments]:
    state = io.load_mapped(path)
    if not with_optimizer or not state.get("last_optimizer_state"):
        state.pop("last_optimizer_state", None)
        return state, {}
    moments = optimizer.by_name(state, path)
    del state["last_optimizer_state"]["state"]
    return state, moments


def weights(state: Mapping[str, Any]) -> list[MutableMapping[str, Any]]:
    """The model's weights, then each copy of them in the extra state."""
    extra = state.get("extra_state") or {}
    return [state["model"], *(extra[name] for name in WEIGHTS_IN_EXTRA_STATE if extra.get(name))]


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
            raise UserError(
                f"{named(names.without_rank(files[0]), rank)} is missing: the run had {what}, each "
                "of which wrote a file"
            )
    for found, path in ranks.items():
        if found not in range(expected):
            raise UserError(f"{path} is of another run: this one had {what}; move the file away")


def check_same_save(
    first_state: Mapping[str, Any], first: Path, state: Mapping[str, Any], path: Path
) -> None:
    """Two rank files are of the same layout and update.

    Raises:
        UserError: they are not.
    """
    updates = config.num_updates(first_state), config.num_updates(state)
    if updates[0] != updates[1]:
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


def _absorb(
    whole: MutableMapping[str, Any], first: Path, part: Mapping[str, Any], path: Path
) -> None:
    """Add the experts of `part` to `whole`; all else must be the same in both, bit for bit."""
    for key in whole:
        if key not in part and names.parse_expert_key(key) is None:
            raise UserError(f"{path} has no {key}, which {first} has: they are of different runs")
    for key, value in part.items():
        if key in whole:
            if not key.endswith(UNSET_BUFFER) and not bit_equal(whole[key], value):
                raise UserError(
                    f"{path}: {key} differs from the same entry of another rank ({first.name} and "
                    "on): the files are not of one save"
                )
        elif names.parse_expert_key(key) is None:
            raise UserError(f"{path} has {key}, which {first} lacks: they are of different runs")
        else:
            whole[key] = value


def _absorb_moments(whole: Moments, first: Path, part: Moments, path: Path) -> None:
    if whole.keys() != part.keys():
        raise UserError(f"{path} is of another run than {first}: their optimizers differ")
    for union, piece in zip(whole.values(), part.values(), strict=True):
        _absorb(union, first, piece, path)


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

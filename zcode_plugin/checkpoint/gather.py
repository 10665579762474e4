"""Reads the file or files of a checkpoint into one state: a union of keys, with its checks."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config, io, names, optimizer, zero_parts
from zcode_plugin.checkpoint.checks import check_name, check_ranks, check_same_save, count_experts
from zcode_plugin.checkpoint.fully_sharded import join_shards
from zcode_plugin.checkpoint.names import UNSET_BUFFER
from zcode_plugin.checkpoint.optimizer import Moments
from zcode_plugin.checkpoint.slices import join, join_moments
from zcode_plugin.checkpoint.tensors import bit_equal, put_together, weights, with_own_storage
from zcode_plugin.errors import UserError
from zcode_plugin.parallel.zero_owners import OWNED


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


def find_files(path: Path, *, shards_too: bool = False) -> list[Path]:
    """The files of a checkpoint: the one that is named, or those of all ranks in their order.

    Args:
        path: a file for all ranks, any rank's file, or the name of either without a rank.
        shards_too: those of `--use-sharded-state` will do.

    Raises:
        UserError: there are none.
    """
    names.check_no_folder(path)
    if names.shard_of(path) is None:
        if names.rank_of(path) is None and path.is_file():
            return [path]
        if files := names.find_rank_files(path):
            return list(files.values())
    found = list(names.find_shards(path).values())
    if found and shards_too:
        return found
    if found:
        raise UserError(
            f"{found[0]} is a shard of all weights: join the shards with zcode merge {found[0]}"
        )
    other = names.with_rank(names.without_rank(names.without_shard(path)), 0)
    raise UserError(f"there is no {path}, nor {other}: name a checkpoint")


def gather(files: list[Path]) -> Gathered:
    """Read the files of a checkpoint, as `find_files` gives them, without the optimizer's state.

    Raises:
        UserError: as `gather_pieces`.
    """
    gathered = gather_pieces(files, with_optimizer=False)
    for tensors in weights(gathered.state):
        put_together(tensors)
    return gathered


def gather_pieces(files: list[Path], *, with_optimizer: bool) -> Gathered:
    """Read the files of a checkpoint; entries that are spread over files are left in `Pieces`.

    Raises:
        UserError: a file is missing, damaged or of another run or update; shared weights differ;
            experts are missing.
    """
    first = files[0]
    if names.shard_of(first) is not None:
        state, moments = join_shards(files, with_optimizer)
        return Gathered(state, moments, count_experts(state["model"], first))
    options = io.load_options(first)
    if names.rank_of(first) is not None:
        check_ranks(files, options)
    tensor_parallel = config.model_parallel_size(options)
    if tensor_parallel == 1 or names.rank_of(first) is None:
        return _union(files, with_optimizer)
    by_slice = [files[part::tensor_parallel] for part in range(tensor_parallel)]
    parts = [_union(of_a_slice, with_optimizer) for of_a_slice in by_slice]
    return _join_slices(parts, [of_a_slice[0] for of_a_slice in by_slice])


def _join_slices(parts: list[Gathered], paths: list[Path]) -> Gathered:
    """The slices of all tensor ranks as one; `paths` has a file of each."""
    states = [part.state for part in parts]
    for state, path in zip(states[1:], paths[1:], strict=True):
        check_same_save(states[0], paths[0], state, path)
    moments = join_moments(
        [part.moments for part in parts], [state["model"] for state in states], paths
    )
    whole = [join(same, paths) for same in zip(*map(weights, states), strict=True)]
    for tensors, joined in zip(weights(states[0]), whole, strict=True):
        tensors.update(joined)
    return Gathered(states[0], moments, count_experts(states[0]["model"], paths[0]))


def _union(files: list[Path], with_optimizer: bool) -> Gathered:
    """Files that differ in their experts, and in what of the optimizer's state they own, as one."""
    first = files[0]
    whole, moments = _load(first, with_optimizer)
    union = (
        zero_parts.Union() if with_optimizer and zero_parts.owned_by(whole) is not None else None
    )
    if union is not None:
        union.add(whole, moments, first)
    for path in files[1:]:
        part, part_moments = _load(path, with_optimizer)
        check_same_save(whole, first, part, path)
        for tensors, piece in zip(weights(whole), weights(part), strict=True):
            _absorb(tensors, first, piece, path)
        if (zero_parts.owned_by(part) is None) != (union is None) and with_optimizer:
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
    return files, gather_for_one_process(files)


def gather_for_one_process(files: list[Path]) -> Gathered:
    """As `gather`, with the options of one process."""
    gathered = gather(files)
    for tensors in weights(gathered.state):
        for key, value in tensors.items():
            tensors[key] = with_own_storage(value) if names.parse_expert_key(key) else value
    config.set_layout(gathered.state, config.world_size(gathered.state), expert_parallel=1, rank=0)
    return gathered


def _load(path: Path, with_optimizer: bool) -> tuple[dict[str, Any], Moments]:
    state = io.load_mapped(path)
    check_name(state, path)
    if not with_optimizer or not state.get("last_optimizer_state"):
        state.pop("last_optimizer_state", None)
        return state, {}
    moments = optimizer.by_name(state, path)
    del state["last_optimizer_state"]["state"]
    return state, moments


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

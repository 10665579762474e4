"""Divides a checkpoint, its optimizer's state included, anew over another number of ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from zcode_plugin.checkpoint import config, names, optimizer, zero_parts
from zcode_plugin.checkpoint.gather import Gathered, gather_pieces
from zcode_plugin.checkpoint.layout import Layout
from zcode_plugin.checkpoint.slices import check_divides, moment_slice_of, slice_of
from zcode_plugin.checkpoint.tensors import (
    WEIGHTS_IN_EXTRA_STATE,
    Pieces,
    count_elements,
    identity,
    with_own_storage,
)
from zcode_plugin.errors import UserError


@dataclass(frozen=True)
class Position:
    """A place in the training data, in batches of each rank since the start of the epoch.

    Attributes:
        epoch: from 1.
        batches: that each rank has had.
        repeated: batches, over all ranks, that the new layout has a second time, because as many
            as it has ranks do not divide what was had.
    """

    epoch: int
    batches: int
    repeated: int = 0


@dataclass(frozen=True)
class Resharding:
    """A checkpoint as read, and how it is to be divided."""

    gathered: Gathered
    before: Layout
    after: Layout
    position_before: Position
    position_after: Position

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return count_elements(self.gathered.state["model"].values())

    def states(self) -> Iterator[dict[str, Any]]:
        """The checkpoint of each file, made when it is asked for."""
        for rank in range(self.after.files):
            yield _rank_state(self, rank)


def plan(
    files: list[Path],
    ranks: int,
    expert_parallel: int | None = None,
    zero: str | None = None,
    tensor_parallel: int = 1,
) -> Resharding:
    """Read a checkpoint that is to be divided over `ranks`.

    Args:
        files: as `gather.find_files` gives them.
        ranks: the new world size.
        expert_parallel: the new `--expert-parallel-size`; None leaves groups of ranks as they
            are where the run had several and their size fits, and else spreads the experts over
            all ranks that see different data.
        zero: the new `--zero-sharding`, `os` or `none`; None leaves it as it was, but for slices,
            which cannot have it. One file for all ranks holds all of the optimizer's state with
            either.
        tensor_parallel: the new `--model-parallel-size`.

    Raises:
        UserError: the sizes do not divide each other, the experts, or what is sliced; and as
            `gather_pieces`.
    """
    gathered = gather_pieces(files, with_optimizer=True)
    state = gathered.state
    config.check_not_quantised(state, files[0], "to train on")
    before = Layout.of_checkpoint(state, gathered.sharded)
    after = _new_layout(gathered, before, ranks, expert_parallel, tensor_parallel)
    sharded = _is_zero_sharded(state, zero, tensor_parallel)
    if sharded and after.expert_parallel > 1 and gathered.moments:
        after = replace(after, sharded=True)
    config.set_zero_sharding(state, "os" if sharded else "none")
    position = _position(state)
    return Resharding(gathered, before, after, position, _moved(position, before, after, state))


def _new_layout(
    gathered: Gathered,
    before: Layout,
    ranks: int,
    expert_parallel: int | None,
    tensor_parallel: int,
) -> Layout:
    """The layout of these sizes, which must divide each other and what there is to divide."""
    if ranks < 1 or tensor_parallel < 1 or ranks % tensor_parallel:
        raise UserError(
            f"--model-parallel-size {tensor_parallel} does not divide --ranks {ranks}: choose a "
            f"divisor of {ranks}"
        )
    data = ranks // tensor_parallel
    if expert_parallel is None:
        expert_parallel = _default_parallel(gathered, before, data)
    if expert_parallel < 1 or data % expert_parallel:
        of_slices = f" / --model-parallel-size {tensor_parallel}" if tensor_parallel > 1 else ""
        raise UserError(
            f"--expert-parallel-size {expert_parallel} does not divide --ranks {ranks}{of_slices}: "
            f"choose a divisor of {data}"
        )
    layout = Layout(ranks, expert_parallel, tensor_parallel)
    for count in gathered.experts.values():
        layout.topology(0).local_experts(count)  # refuses what does not divide
    check_divides(config.section(gathered.state, "model"), tensor_parallel)
    return layout


def _default_parallel(gathered: Gathered, before: Layout, data: int) -> int:
    if not gathered.experts:
        return 1
    in_groups = 1 < before.expert_parallel < before.data and data % before.expert_parallel == 0
    return before.expert_parallel if in_groups else data


def _is_zero_sharded(state: Mapping[str, Any], zero: str | None, tensor_parallel: int) -> bool:
    if tensor_parallel > 1:
        if zero == "os":
            raise UserError(
                f"--zero-sharding os cannot go with --model-parallel-size {tensor_parallel}: drop "
                "one of them"
            )
        return False
    return config.is_zero_sharded(state) if zero is None else zero == "os"


def _position(state: Mapping[str, Any]) -> Position:
    iterator = (state.get("extra_state") or {}).get("train_iterator") or {}
    return Position(int(iterator.get("epoch", 1)), int(iterator.get("iterations_in_epoch", 0)))


def _moved(position: Position, before: Layout, after: Layout, state: Mapping[str, Any]) -> Position:
    """The same place for other ranks: of D with different data, rank d has every D-th batch."""
    grouped = config.get(config.section(state, "dataset"), "grouped_shuffling", False)
    if grouped and position.batches and before.data != after.data:
        raise UserError(
            "--grouped-shuffling orders batches by the number of ranks, so that there is no such "
            "place in the middle of an epoch: use a checkpoint from the end of one"
        )
    batches, repeated = divmod(position.batches * before.data, after.data)
    return Position(position.epoch, batches, repeated)


def _rank_state(resharding: Resharding, rank: int) -> dict[str, Any]:
    """What the trainer of this rank would have saved."""
    gathered, after = resharding.gathered, resharding.after
    state = dict(gathered.state)
    state["model"] = _select(state["model"], gathered.experts, after, rank)
    state["extra_state"] = extra = dict(state.get("extra_state") or {})
    for name in WEIGHTS_IN_EXTRA_STATE:
        if extra.get(name):
            extra[name] = _select(extra[name], gathered.experts, after, rank)
    if extra.get("train_iterator"):
        extra["train_iterator"] = {
            **extra["train_iterator"],
            "iterations_in_epoch": resharding.position_after.batches,
        }
    if gathered.state.get("last_optimizer_state"):
        parameters, owned = gathered.state["task_state"]["parameters"], None
        if after.sharded:
            owned = zero_parts.keep_owned(
                state, world=after.world, expert_parallel=after.expert_parallel, rank=rank
            )
        take = partial(moment_slice_of, slicing=after.slicing(rank))
        state["last_optimizer_state"] = {
            "state": optimizer.by_number(gathered.moments, parameters, state["model"], owned, take),
            **state["last_optimizer_state"],
        }
    for options in ("cfg", "args"):
        state[options] = copy.deepcopy(state.get(options))
    config.set_layout(state, after.world, after.expert_parallel, rank, after.tensor_parallel)
    return state


def _select(
    tensors: Mapping[str, Any], experts: Mapping[str, int], layout: Layout, rank: int
) -> dict[str, Any]:
    """A rank's slices of the shared entries and of its experts; tied entries stay tied."""
    slicing, topology = layout.slicing(rank), layout.topology(rank)
    local = {layer: topology.local_experts(count) for layer, count in experts.items()}
    selected: dict[str, Any] = {}
    made: dict[tuple[Any, ...], Any] = {}
    for key, value in tensors.items():
        parts = names.parse_expert_key(key)
        if parts is None and isinstance(value, (Tensor, Pieces)):
            known = identity(value)
            if known not in made:
                made[known] = with_own_storage(slice_of(key, value, slicing))
            selected[key] = made[known]
        elif parts is None:
            selected[key] = value
        elif parts.expert in local[parts.layer]:
            selected[key] = with_own_storage(slice_of(key, value, slicing))
    return selected

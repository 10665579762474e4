"""Divides a checkpoint, its optimizer's state included, anew over another number of ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config, names, optimizer, shards
from zcode_plugin.checkpoint.gather import WEIGHTS_IN_EXTRA_STATE, Gathered, gather
from zcode_plugin.checkpoint.tensors import count_elements, with_own_storage
from zcode_plugin.errors import UserError
from zcode_plugin.parallel.topology import ExpertTopology


@dataclass(frozen=True)
class Layout:
    """How a run is spread.

    Attributes:
        world: ranks.
        parallel: P, ranks over which the experts are spread (`--expert-parallel-size`).
        sharded: whether each file holds a part of the optimizer's state (`--zero-sharding os`).
    """

    world: int
    parallel: int
    sharded: bool = False

    @property
    def files(self) -> int:
        """One for each rank when ranks hold different experts."""
        return self.world if self.parallel > 1 else 1

    def path(self, whole: Path, rank: int) -> Path:
        """The file of a rank, where `whole` is the name without a rank."""
        return names.with_rank(whole, rank) if self.parallel > 1 else whole


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
        """The checkpoint of each file, one at a time: no other is in memory."""
        for rank in range(self.after.files):
            yield _rank_state(self, rank)


def plan(
    files: list[Path], ranks: int, parallel: int | None = None, zero: str | None = None
) -> Resharding:
    """Read a checkpoint that is to be divided over `ranks`.

    Args:
        files: as `gather.find_files` gives them.
        ranks: the new world size.
        parallel: the new `--expert-parallel-size`; None leaves groups of ranks as they are where
            the run had several and their size fits, and else spreads the experts over all ranks.
        zero: the new `--zero-sharding`, `os` or `none`; None leaves it as it was. One file for all
            ranks holds all of the optimizer's state with either.

    Raises:
        UserError: the sizes do not divide each other or the experts, or the run's layout cannot be
            divided; and as `gather`.
    """
    gathered = gather(files, with_optimizer=True)
    state = gathered.state
    before = Layout(config.world_size(state), config.expert_parallel_size(state), gathered.sharded)
    _check_supported(state, files[0])
    if parallel is None:
        parallel = _default_parallel(gathered, before, ranks)
    if ranks < 1 or parallel < 1 or ranks % parallel:
        raise UserError(
            f"--expert-parallel-size {parallel} does not divide --ranks {ranks}: choose a divisor "
            f"of {ranks}"
        )
    sharded = config.is_zero_sharded(state) if zero is None else zero == "os"
    after = Layout(ranks, parallel, sharded and parallel > 1 and bool(gathered.moments))
    for count in gathered.experts.values():
        _topology(after, 0).local_experts(count)  # refuses what does not divide
    config.set_zero_sharding(state, "os" if sharded else "none")
    position = _position(state)
    return Resharding(gathered, before, after, position, _moved(position, before, after, state))


def _default_parallel(gathered: Gathered, before: Layout, ranks: int) -> int:
    if not gathered.experts:
        return 1
    in_groups = 1 < before.parallel < before.world and ranks % before.parallel == 0
    return before.parallel if in_groups else ranks


def _check_supported(state: Mapping[str, Any], path: Path) -> None:
    """Refuse quantised experts, and layouts in which more than experts is spread over ranks."""
    config.check_not_quantised(state, path, "to train on")
    refused = {
        "--model-parallel-size": config.get(
            config.section(state, "common"), "model_parallel_size", 1
        )
        > 1,
    }
    for flag, is_used in refused.items():
        if is_used:
            raise UserError(
                f"{path} is of a run with {flag}, whose files hold parts of the shared weights or "
                "their optimizer's state: only experts can be divided anew"
            )


def _topology(layout: Layout, rank: int) -> ExpertTopology:
    return ExpertTopology(
        size=layout.parallel,
        rank=rank % layout.parallel,
        data_size=layout.world // layout.parallel,
    )


def _position(state: Mapping[str, Any]) -> Position:
    iterator = (state.get("extra_state") or {}).get("train_iterator") or {}
    return Position(int(iterator.get("epoch", 1)), int(iterator.get("iterations_in_epoch", 0)))


def _moved(position: Position, before: Layout, after: Layout, state: Mapping[str, Any]) -> Position:
    """The same place for another number of ranks: rank r of W has every W-th batch from r on."""
    grouped = config.get(config.section(state, "dataset"), "grouped_shuffling", False)
    if grouped and position.batches and before.world != after.world:
        raise UserError(
            "--grouped-shuffling orders batches by the number of ranks, so that there is no such "
            "place in the middle of an epoch: use a checkpoint from the end of one"
        )
    batches, repeated = divmod(position.batches * before.world, after.world)
    return Position(position.epoch, batches, repeated)


def _rank_state(resharding: Resharding, rank: int) -> dict[str, Any]:
    """What the trainer of this rank would have saved."""
    gathered, after = resharding.gathered, resharding.after
    state = dict(gathered.state)
    local = {
        layer: _topology(after, rank).local_experts(count)
        for layer, count in gathered.experts.items()
    }
    state["model"] = _select(state["model"], local)
    state["extra_state"] = extra = dict(state.get("extra_state") or {})
    for name in WEIGHTS_IN_EXTRA_STATE:
        if extra.get(name):
            extra[name] = _select(extra[name], local)
    if extra.get("train_iterator"):
        extra["train_iterator"] = {
            **extra["train_iterator"],
            "iterations_in_epoch": resharding.position_after.batches,
        }
    if gathered.state.get("last_optimizer_state"):
        parameters, owned = gathered.state["task_state"]["parameters"], None
        if after.sharded:
            owned = shards.keep_owned(state, world=after.world, parallel=after.parallel, rank=rank)
        state["last_optimizer_state"] = {
            "state": optimizer.by_number(gathered.moments, parameters, state["model"], owned),
            **state["last_optimizer_state"],
        }
    for options in ("cfg", "args"):
        state[options] = copy.deepcopy(state.get(options))
    config.set_layout(state, after.world, after.parallel, rank)
    return state


def _select(tensors: Mapping[str, Any], local: Mapping[str, range]) -> MutableMapping[str, Any]:
    """The shared entries and those of the local experts."""
    selected = {}
    for key, value in tensors.items():
        parts = names.parse_expert_key(key)
        if parts is None:
            selected[key] = value
        elif parts.expert in local[parts.layer]:
            selected[key] = with_own_storage(value)
    return selected

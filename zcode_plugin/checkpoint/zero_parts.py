"""Optimizers' states that ranks share between them: `--zero-sharding os` with rank files.

The file of a rank then holds the state of the parameters that it owns, and their numbers (`OWNED`);
all files together hold each entry once.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import names
from zcode_plugin.checkpoint.optimizer import Moments, stack_keys
from zcode_plugin.errors import UserError
from zcode_plugin.parallel.zero_owners import OWNED, Sized, owned_numbers


def owned_by(state: Mapping[str, Any]) -> list[int] | None:
    """The numbers of the parameters whose state a file holds; None where it holds that of all."""
    return (state.get("last_optimizer_state") or {}).get(OWNED)


def expected(state: Mapping[str, Any], *, world: int, expert_parallel: int, rank: int) -> list[int]:
    """The numbers that a rank owns in a run of this layout.

    Args:
        state: the checkpoint of the rank, with its weights and the names of parameters.
        world: ranks.
        expert_parallel: `--expert-parallel-size`.
        rank: from 0.
    """
    model, sizes = state["model"], []
    for name in state["task_state"]["parameters"]:
        stack = names.parse_stack(name)
        keys = [name] if stack is None else stack_keys(stack, model)
        sizes.append(Sized(sum(model[key].numel() for key in keys), is_expert=stack is not None))
    return owned_numbers(sizes, world=world, expert_parallel=expert_parallel, rank=rank)


def owned_entries(state: Mapping[str, Any], owned: Sequence[int]) -> list[str]:
    """The entries whose state a file holds, single experts by their own names."""
    entries: list[str] = []
    for number in owned:
        name = state["task_state"]["parameters"][number]
        stack = names.parse_stack(name)
        entries += [name] if stack is None else stack_keys(stack, state["model"])
    return entries


class Union:
    """The parts of all ranks put together, each entry once.

    Attributes:
        moments: of all files so far.
    """

    def __init__(self) -> None:
        self.moments: Moments = {}
        self._owner: dict[str, Path] = {}

    def add(self, state: Mapping[str, Any], moments: Moments, path: Path) -> None:
        """Add the part of one file.

        Raises:
            UserError: another file holds some of it.
        """
        for entry in owned_entries(state, owned_by(state) or []):
            other = self._owner.setdefault(entry, path)
            if other != path:
                raise UserError(
                    f"{path} and {other} both hold the optimizer's state of {entry}, which "
                    "--zero-sharding gives to one rank: the files are not of one save"
                )
        for slot, entries in moments.items():
            self.moments.setdefault(slot, {}).update(entries)

    def check_whole(self, state: Mapping[str, Any], first: Path) -> None:
        """Each entry that is trained is in one of the files.

        Args:
            state: all weights, and the names of parameters.
            first: the first file, for the error.

        Raises:
            UserError: naming an entry that none holds.
        """
        parameters = state["task_state"]["parameters"]
        for entry in owned_entries(state, range(len(parameters))):
            if entry not in self._owner:
                raise UserError(
                    f"{first} and the other ranks' files hold no optimizer's state of {entry}: "
                    "they are not of one save"
                )


def keep_owned(
    state: MutableMapping[str, Any], *, world: int, expert_parallel: int, rank: int
) -> list[int]:
    """Make the optimizer's state of a rank's checkpoint one of `--zero-sharding os`, in place.

    Its state for parameters must be added by the caller.

    Returns:
        The numbers of the parameters whose state belongs into it.
    """
    owned = expected(state, world=world, expert_parallel=expert_parallel, rank=rank)
    state["last_optimizer_state"] = {**state["last_optimizer_state"], OWNED: owned}
    return owned


def check_start(
    state: Mapping[str, Any],
    path: Path,
    *,
    world: int,
    expert_parallel: int,
    rank: int,
    sharded: bool,
) -> None:
    """Refuse a rank's file whose part of the state is not what the rank of this run needs.

    A file with the state of all parameters will do for both kinds of runs.

    Args:
        sharded: whether the run has `--zero-sharding os`.

    Raises:
        UserError: naming the `zcode reshard` that helps.
    """
    owned = owned_by(state)
    if owned is None:
        return
    how = "os" if sharded else "none"
    remedy = (
        f"zcode reshard {names.without_rank(path)} --ranks {world} --expert-parallel-size "
        f"{expert_parallel} --zero-sharding {how} --out DIR"
    )
    if not sharded:
        raise UserError(
            f"{path} is of a run with --zero-sharding os and holds a part of the optimizer's "
            f"state: add the flag, or give each rank all of its own with {remedy}"
        )
    if owned != expected(state, world=world, expert_parallel=expert_parallel, rank=rank):
        raise UserError(
            f"{path} holds another part of the optimizer's state than rank {rank} needs: divide "
            f"it anew with {remedy}"
        )

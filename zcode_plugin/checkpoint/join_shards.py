"""Joins the files of a run with `--use-sharded-state`: flat pieces of all weights, one a rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zcode_plugin.checkpoint import config, io, names
from zcode_plugin.errors import UserError


def check_shards(files: Mapping[int, Path], world: int | None = None) -> int:
    """All shards of one save are there, and no other.

    Args:
        files: paths by shard, as `names.find_shards` gives them; at least one.
        world: ranks of the run that wants them; None for as many as the run that saved them had.

    Returns:
        Updates that were done.

    Raises:
        UserError: naming the file that is missing, too many, or of another save.
    """
    first = next(iter(files.values()))
    updates: dict[Path, int] = {}
    for path in files.values():
        state = io.load_options(path)
        updates[path] = config.num_updates(state)
        saved = config.world_size(state)
        if world is not None and saved != world:
            raise UserError(
                f"{path} is of a run with --use-sharded-state on {saved} ranks, and this one has "
                f"{world}: go on with as many, or from the weights alone: zcode merge {first} and "
                "--finetune-from-model"
            )
        if list(files) != list(range(saved)):
            raise UserError(
                f"the run of {path} had {saved} ranks, each of which wrote a shard; there are "
                f"those of ranks {', '.join(map(str, files))}"
            )
        if updates[path] != updates[first]:
            raise UserError(
                f"{path} was saved after {updates[path]} updates but {first} after "
                f"{updates[first]}: use files of one save"
            )
    return updates[first]


def join_shards(files: Mapping[int, Path]) -> dict[str, Any]:
    """A checkpoint as one process would have saved it, without the optimizer's state.

    Raises:
        UserError: as `check_shards`.
    """
    check_shards(files)
    states = [io.load_mapped(path) for path in files.values()]
    whole = {key: value for key, value in states[0].items() if key != "fsdp_metadata"}
    whole.pop("last_optimizer_state", None)
    whole["model"] = model = dict(_entries(states, config.expert_parallel_size(whole)))
    for key, twin in names.ONE_EMBEDDING.items():
        if key not in model and twin in model:
            model[key] = model[twin]
    config.set_layout(whole, len(states), parallel=1, rank=0)
    config.put(config.section(whole, "distributed_training"), "use_sharded_state", False)
    return whole


def _entries(states: Sequence[Mapping[str, Any]], size: int) -> Iterator[tuple[str, Any]]:
    metadata = states[0]["fsdp_metadata"]
    for number, wrapper in enumerate(metadata["param_metadata"]):
        path = wrapper["fsdp_path"]
        entries: dict[str, Tensor] = {}
        for backing, flat in wrapper["params"].items():
            # Experts that are spread are wrapped by themselves, over every size-th rank.
            is_stack = [names.parse_stack(_under(path, name)) is not None for name in flat["names"]]
            step = size if all(is_stack) else 1
            for place in range(step):
                pieces = [_piece(state, number, backing) for state in states[place::step]]
                entries.update(_parts(path, flat, torch.cat(pieces), place))
        for source, target in wrapper["shared_param_info"]:  # tied weights
            entries[_under(path, target)] = entries[_under(path, source)]
        yield from entries.items()
    for key in metadata["buffer_names"]:
        yield key, states[0]["model"][key]


def _piece(state: Mapping[str, Any], number: int, backing: str) -> Tensor:
    """What a rank has of a flat parameter, without the padding at its end."""
    wrapper = state["fsdp_metadata"]["param_metadata"][number]
    piece = state["model"][_under(wrapper["fsdp_path"], backing)]
    return piece[: piece.numel() - wrapper["params"][backing]["padding"]]


def _parts(
    path: str, flat: Mapping[str, Any], whole: Tensor, place: int
) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a flat one; of stacks an entry for each expert."""
    parts = whole.split(flat["numels"])
    for name, shape, part in zip(flat["names"], flat["shapes"], parts, strict=True):
        stack = names.parse_stack(_under(path, name))
        if stack is None:
            yield _under(path, name), part.view(shape).clone()
        else:
            for local, expert in enumerate(part.view(shape)):
                yield stack.key(place * shape[0] + local), expert.clone()


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

"""Converts the optimizer's state between FSDP's flat shards and the model's own parameters.

Where parameters are sharded the optimizer has one for each FSDP wrapper. In a checkpoint it has
those of the model, in the model's order, so that a run may go on with or without shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn.data_parallel import FullyShardedDataParallel
from fairscale.nn.data_parallel.fully_sharded_data_parallel import get_fsdp_instances
from torch import Tensor, nn

from zcode_plugin.errors import UserError

_WRAPPERS = {"_fsdp_wrapped_module", "_fpw_module"}


@dataclass(frozen=True)
class Place:
    """Where a parameter of the model is.

    Attributes:
        name: as without wrappers.
        wrapper: number of the wrapper, and so of the flat parameter in the optimizer.
        part: number among the parts of the flat parameter.
    """

    name: str
    wrapper: int
    part: int


def wrappers(model: nn.Module) -> list[FullyShardedDataParallel]:
    """The wrappers that have a flat parameter, in the order of the optimizer's numbers."""
    return get_fsdp_instances(model, skip_empty=True)


def places(model: nn.Module) -> list[Place]:
    """All parameters in the order that they have without wrappers."""
    parts = {
        (id(owner), name): (number, part)
        for number, wrapper in enumerate(wrappers(model))
        for part, (_, owner, name) in enumerate(wrapper.module._param_infos)
    }
    by_owner: dict[int, list[tuple[str, tuple[int, int]]]] = {}
    for (owner, name), place in parts.items():
        by_owner.setdefault(owner, []).append((name, place))
    return [
        Place(".".join([*_clean(path), name]), *place)
        for path, module in model.named_modules()
        for name, place in by_owner.get(id(module), ())
    ]


def _clean(path: str) -> list[str]:
    return [part for part in path.split(".") if part and part not in _WRAPPERS]


def parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters, in the order in which checkpoints number them."""
    return [place.name for place in places(model)]


def gather_state(model: nn.Module, own: dict[str, Any], is_kept: bool) -> dict[str, Any] | None:
    """The state of whole parameters; all ranks must call it.

    Args:
        model: with its wrappers.
        own: state dict of this rank's optimizer; is changed.
        is_kept: whether this rank wants the result.

    Returns:
        A state dict in which parameters have the numbers of `places`; None if it is not wanted.
    """
    parts_of: dict[int, dict[str, Any]] = {}
    for number, wrapper in enumerate(wrappers(model)):
        for slot, value in own["state"].get(number, {}).items():
            if torch.is_tensor(value) and value.dim() > 0:
                whole = _gather(wrapper, value)
                if is_kept:
                    views = wrapper.module.get_param_views([whole])
                    parts_of.setdefault(number, {})[slot] = list(views)
            elif is_kept:
                parts_of.setdefault(number, {})[slot] = value
    if not is_kept:
        return None
    all_places = places(model)
    state = {
        number: {
            slot: parts[place.part] if isinstance(parts, list) else parts
            for slot, parts in parts_of[place.wrapper].items()
        }
        for number, place in enumerate(all_places)
        if place.wrapper in parts_of
    }
    return {**own, "state": state, "param_groups": _groups(own, len(all_places))}


def shard_state(model: nn.Module, whole: dict[str, Any]) -> dict[str, Any]:
    """This rank's part of a state that `gather_state` made, or a run without shards.

    Raises:
        UserError: it is of other parameters.
    """
    all_places = places(model)
    saved = sum(len(group["params"]) for group in whole["param_groups"])
    if saved != len(all_places):
        raise UserError(
            f"the optimizer's state is of {saved} parameters, this model has {len(all_places)}: "
            "add --reset-optimizer"
        )
    parts_of: dict[int, dict[int, dict[str, Any]]] = {}
    for number, place in enumerate(all_places):
        parts_of.setdefault(place.wrapper, {})[place.part] = whole["state"].get(number, {})
    state = {}
    owners = wrappers(model)
    for number, by_part in parts_of.items():
        parts = [by_part[part] for part in sorted(by_part)]
        slots = dict.fromkeys(slot for part in parts for slot in part)
        if slots:
            state[number] = {
                slot: _shard(owners[number], [part.get(slot) for part in parts]) for slot in slots
            }
    return {**whole, "state": state, "param_groups": _groups(whole, len(owners))}


def _groups(state: dict[str, Any], count: int) -> list[dict[str, Any]]:
    [group] = state["param_groups"]
    return [{**group, "params": list(range(count))}]


def _gather(wrapper: FullyShardedDataParallel, shard: Tensor) -> Tensor:
    """A flat parameter's state [elements] on the CPU, from the shards of its wrapper's group."""
    size = wrapper.params[0]._orig_size.numel()
    if wrapper.world_size == 1:
        return shard.cpu()
    shard = shard.to(wrapper.compute_device)
    shards = [torch.empty_like(shard) for _ in range(wrapper.world_size)]
    dist.all_gather(shards, shard, group=wrapper.process_group)
    return torch.cat(shards)[:size].cpu()


def _shard(wrapper: FullyShardedDataParallel, parts: list[Any]) -> Any:
    """This rank's shard of parts; None is that of a parameter which has had no gradient yet."""
    first = next(part for part in parts if part is not None)
    if not torch.is_tensor(first) or first.dim() == 0:
        return first
    flat = [
        first.new_zeros(size) if part is None else part.reshape(-1)
        for part, size in zip(parts, wrapper.params[0]._param_numels, strict=True)
    ]
    return wrapper._get_shard(torch.cat(flat))[0]

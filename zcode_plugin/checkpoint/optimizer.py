"""The optimizer's state under the names that the model's entries have.

An optimizer numbers its parameters, and the experts of a rank are one parameter for each of their
stacks. By name, `exp_avg` and its like have an entry for each shared parameter and each single
expert, exactly as the model has: what joins and divides models does the same to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from zcode_plugin.checkpoint import names
from zcode_plugin.checkpoint.tensors import bit_equal
from zcode_plugin.errors import UserError

# What the optimizer keeps for each parameter, such as exp_avg, by the name of the entry.
Moments = dict[str, dict[str, Any]]


def by_name(state: Mapping[str, Any], path: Path) -> Moments:
    """The optimizer's state of a checkpoint by slot (`exp_avg`) and entry; experts are views.

    Raises:
        UserError: the parameters cannot be told apart.
    """
    moments: Moments = {}
    saved = state["last_optimizer_state"]["state"]
    for number, name in enumerate(_numbered_names(state, path)):
        stack = names.parse_stack(name)
        for slot, value in saved.get(number, {}).items():
            entries = moments.setdefault(slot, {})
            if stack is None:
                entries[name] = value
            else:
                entries.update(_unstack(stack, state["model"], value, f"{path}: {slot} of {name}"))
    return dict(sorted(moments.items()))


def by_number(
    moments: Moments,
    parameters: list[str],
    model: Mapping[str, Any],
    only: Collection[int] | None = None,
    take: Callable[[str, Any], Any] = lambda _, value: value,
) -> dict[int, dict[str, Any]]:
    """The inverse of `by_name`, for the rank whose weights are `model`.

    Args:
        moments: as `by_name` gives them, of all experts or more than this rank's.
        parameters: names of the model's parameters, as the optimizer numbers them.
        model: entries of the rank's model.
        only: the numbers that are wanted; None wants all.
        take: what the rank has of an entry, by its name and its value in `moments`; by default all.
    """
    numbered: dict[int, dict[str, Any]] = {}
    for number, name in enumerate(parameters):
        if only is not None and number not in only:
            continue
        stack = names.parse_stack(name)
        keys = [name] if stack is None else stack_keys(stack, model)
        for slot, entries in moments.items():
            values = [take(key, entries[key]) for key in keys if key in entries]
            if values:
                value = values[0] if stack is None else _stacked(values, keys, slot)
                numbered.setdefault(number, {})[slot] = value
    return numbered


def parameter_names(state: Mapping[str, Any], path: Path) -> list[str]:
    """The names of the parameters, as the optimizer numbers them.

    Raises:
        UserError: the checkpoint does not have them.
    """
    names_ = (state.get("task_state") or {}).get("parameters")
    if names_ is None:
        raise UserError(
            f"{path} does not name the optimizer's parameters, which the task "
            "multitask_multilingual does: it was saved by another task or an older version"
        )
    return list(names_)


def _numbered_names(state: Mapping[str, Any], path: Path) -> list[str]:
    names_ = parameter_names(state, path)
    groups = state["last_optimizer_state"]["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    if len(numbers) != len(names_):
        raise UserError(
            f"{path}: the optimizer has {len(numbers)} parameters and the model {len(names_)}; "
            "where --fp16 has flattened them, train with --fp16-no-flatten-grads or "
            "--memory-efficient-fp16 to change the number of ranks"
        )
    return names_


def stack_keys(stack: names.Stack, model: Mapping[str, Any]) -> list[str]:
    """The entries of a stack in the order of the experts."""
    parts = [names.parse_expert_key(key) for key in model]
    experts = [part.expert for part in parts if part and part.layer == stack.layer]
    return [key for key in map(stack.key, sorted(set(experts))) if key in model]


def _unstack(stack: names.Stack, model: Mapping[str, Any], value: Any, what: str) -> dict[str, Any]:
    """An entry for each expert: its row, or the one number that all of a stack have."""
    keys = stack_keys(stack, model)
    if not torch.is_tensor(value) or value.dim() == 0:
        return dict.fromkeys(keys, value)
    if value.shape != (len(keys), *model[keys[0]].shape):
        raise UserError(
            f"{what} has the shape {tuple(value.shape)}, which is not divided by experts: the "
            "number of ranks can be changed with adam, sgd and others that treat each weight "
            "alike, or without the optimizer (zcode merge)"
        )
    return dict(zip(keys, value.unbind(), strict=True))


def _stacked(values: list[Any], keys: list[str], slot: str) -> Any:
    if len(values) < len(keys):
        raise UserError(f"the optimizer's {slot} is missing for one of {keys[0]} and its like")
    first = values[0]
    if torch.is_tensor(first) and first.dim() > 0:
        return torch.stack(values)
    if not all(bit_equal(value, first) for value in values):
        raise UserError(f"the optimizer's {slot} differs between experts of {keys[0]} and its like")
    return first

"""An optimizer in parts does what one of all parameters does, groups and schedules included."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from distributed import run_ranks
from torch import nn
from torch.optim import Optimizer

from zcode_plugin.errors import UserError
from zcode_plugin.parallel.topology import expert_topology
from zcode_plugin.parallel.zero import ShardedOptimizer
from zcode_plugin.parallel.zero_owners import OWNED

OPTIONS = {"lr": 0.1, "betas": (0.9, 0.99)}
SHAPES = [(4, 3), (6,), (2, 2), (5,), (3, 3), (1,)]


def parameters(rank: int) -> list[nn.Parameter]:
    """The last three are experts: the same on every second rank."""
    made = []
    for number, shape in enumerate(SHAPES):
        is_expert = number >= 3
        draw = torch.Generator().manual_seed(10 * number + is_expert * (rank % 2))
        made.append(nn.Parameter(torch.randn(shape, generator=draw)))
        if is_expert:
            made[-1].expert = True  # type: ignore[attr-defined]
    return made


def groups(made: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Two, of which the second has experts alone."""
    return [{"params": made[:4], "weight_decay": 0.1}, {"params": made[4:], "lr": 0.02}]


def step(optimizer: Optimizer, made: list[nn.Parameter], number: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.9  # as a scheduler does
    for parameter in made:
        parameter.grad = parameter.detach().cos() + number
    optimizer.step()


def build(made: list[nn.Parameter]) -> ShardedOptimizer:
    whole = torch.optim.AdamW(groups(made), **OPTIONS)
    world = dist.group.WORLD
    assert world is not None
    return ShardedOptimizer(whole, OPTIONS, world, expert_topology(2).data_group)


def differences(rank: int) -> dict[str, Any]:
    made, again, alone = parameters(rank), parameters(rank), parameters(rank)
    sharded = build(made)
    reference = torch.optim.AdamW(groups(alone), **OPTIONS)
    for number in range(2):
        step(sharded, made, number)
        step(reference, alone, number)
    saved = copy.deepcopy(sharded.state_dict())
    resumed, from_whole = build(again), build(third := parameters(rank))
    for optimizer, its in ((resumed, again), (from_whole, third)):
        for parameter, value in zip(its, made, strict=True):
            parameter.data.copy_(value.data)
        whole = optimizer is from_whole
        optimizer.load_state_dict(copy.deepcopy(reference.state_dict()) if whole else saved)
    for optimizer, its in ((sharded, made), (resumed, again), (from_whole, third)):
        step(optimizer, its, 2)
    step(reference, alone, 2)
    message = ""
    try:
        resumed.load_state_dict({**saved, OWNED: [*saved[OWNED], 99]})
    except UserError as error:
        message = str(error)
    return {
        "equal": [
            all(torch.equal(one, other) for one, other in zip(its, alone, strict=True))
            for its in (made, again, third)
        ],
        "owned": saved[OWNED],
        "state": list(saved["state"]),
        "message": message,
    }


def test_equals_an_optimizer_of_all_parameters_through_a_reload() -> None:
    results = run_ranks(differences, 4)
    for result in results:
        assert result["equal"] == [True] * 3
        assert result["state"] == result["owned"]
        assert "zcode reshard divides it anew" in result["message"]
    owned = [result["owned"] for result in results]
    assert sorted(number for part in owned for number in part if number < 3) == [0, 1, 2]
    for place in (0, 1):
        both = owned[place] + owned[place + 2]
        assert sorted(number for number in both if number >= 3) == [3, 4, 5]

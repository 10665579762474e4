"""The optimizer's state of whole parameters, as shards of it."""

from __future__ import annotations

from typing import Any

import torch
from distributed import run_ranks
from fairscale.nn.data_parallel import FullyShardedDataParallel
from torch import nn

from zcode_plugin.parallel.fully_sharded_state import shard_state


def _shards(rank: int, state: dict[int, Any]) -> dict[int, Any]:
    layers = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model = FullyShardedDataParallel(layers, compute_device=torch.device("cpu"))
    return shard_state(model, {"state": state, "param_groups": [{"params": [0, 1, 2, 3]}]})["state"]


def test_parameters_that_had_no_gradient_yet_have_moments_of_zero() -> None:
    """A run of one process has no state for them, as for a head whose objective begins later."""
    state = {
        1: {"step": 7, "exp_avg": torch.ones(3)},
        2: {"step": 7, "exp_avg": 2 * torch.ones(1, 3)},
    }
    shards = run_ranks(_shards, 2, state)
    assert [shard[0]["step"] for shard in shards] == [7, 7]
    whole = torch.cat([shard[0]["exp_avg"] for shard in shards])
    assert whole.tolist() == [0.0] * 6 + [1.0] * 3 + [2.0] * 3 + [0.0] * (1 + len(whole) - 13)
    assert run_ranks(_shards, 2, {}) == [{}, {}]

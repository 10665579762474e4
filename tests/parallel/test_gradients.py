"""Gradients of experts: their mean over ranks, and their norm where nothing else is trained."""

from __future__ import annotations

import pytest
import torch
from distributed import run_ranks
from optimizers import sgd
from torch import Tensor, nn

from zcode_plugin.parallel.gradients import clip_experts_alone, reduce_expert_gradients
from zcode_plugin.parallel.topology import expert_topology


def expert(grad: list[float] | None) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.expert = True  # type: ignore[attr-defined]
    parameter.grad = None if grad is None else torch.tensor(grad)
    return parameter


def _reduce(rank: int, size: int) -> list[list[float] | None]:
    experts = [expert([4.0 + rank, 8.0]), expert([2.0, 0.0] if rank == 0 else None), expert(None)]
    experts[2].requires_grad_(False)
    reduce_expert_gradients(experts, expert_topology(size))
    return [None if one.grad is None else one.grad.tolist() for one in experts]


def test_replicas_share_the_mean_also_where_one_was_sent_nothing() -> None:
    """All experts on each of two ranks."""
    assert run_ranks(_reduce, 2, 1) == [[[4.5, 8.0], [1.0, 0.0], None]] * 2


def test_an_expert_that_one_rank_holds_has_its_sum_of_all_tokens_over_the_ranks() -> None:
    assert run_ranks(_reduce, 2, 2) == [
        [[2.0, 4.0], [1.0, 0.0], None],
        [[2.5, 4.0], None, None],
    ]


@pytest.mark.parametrize(
    ("max_norm", "expected"), [(2.5, [1.5, 2.0]), (10.0, [3.0, 4.0]), (0.0, [3.0, 4.0])]
)
def test_experts_alone_are_clipped(max_norm: float, expected: list[float]) -> None:
    """Only down, and with 0 not at all; the norm is that of all ranks."""
    parameters = [expert([3.0, 4.0]), expert(None)]
    optimizer = sgd(parameters)
    clip_experts_alone(optimizer)

    def add_norm(dense_norm: Tensor) -> Tensor:
        assert dense_norm == 0
        return torch.tensor(5.0)

    assert optimizer.clip_grad_norm(max_norm, aggregate_norm_fn=add_norm) == 5
    assert parameters[0].grad is not None
    assert parameters[0].grad.tolist() == pytest.approx(expected, abs=1e-5)

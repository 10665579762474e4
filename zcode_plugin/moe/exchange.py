"""Moves tokens to the ranks of their experts and back, in blocks of any size.

Ranks may hold different numbers of tokens, none included; nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Exchange:
    """The plan of one call's exchange over a group of P ranks.

    Attributes:
        sent: rows for each rank, P numbers.
        received: rows from each rank, P numbers.
        to_expert: int64 [R], order that groups the R received rows by local expert.
        kept: received rows of each local expert, L numbers.
        group: the expert group.
    """

    sent: list[int]
    received: list[int]
    to_expert: Tensor
    kept: list[int]
    group: dist.ProcessGroup

    def dispatch(self, x_AM: Tensor) -> Tensor:
        """[A, M] rows grouped by expert -> [R, M] rows of this rank's experts, grouped alike."""
        received = _AllToAll.apply(x_AM, self.sent, self.received, self.group)
        return received.index_select(0, self.to_expert)

    def combine(self, y_RM: Tensor) -> Tensor:
        """[R, M] results -> [A, M], in the order in which `dispatch` was given the rows."""
        back = torch.empty_like(self.to_expert)
        back[self.to_expert] = torch.arange(back.numel(), device=back.device)
        y_RM = y_RM.index_select(0, back)
        return _AllToAll.apply(y_RM, self.received, self.sent, self.group)


class _AllToAll(torch.autograd.Function):
    """Rows to and from every rank; the gradients take the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, send: list[int], receive: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        output = x.new_empty(sum(receive), *x.shape[1:])
        dist.all_to_all_single(output, x.contiguous(), receive, send, group=group)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _AllToAll.apply(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def plan_exchange(kept_E: Tensor, group: dist.ProcessGroup) -> Exchange:
    """Tell every rank how many rows each of its experts will get from whom.

    Args:
        kept_E: int64 [E], rows of this rank for each expert; expert e lives on rank e // L.
        group: P ranks, P divides E.
    """
    ranks = group.size()
    received_E = torch.empty_like(kept_E)
    dist.all_to_all_single(received_E, kept_E.contiguous(), group=group)
    # Both counts reach the host in one copy: the only synchronisation of a layer on a GPU.
    send_PL, receive_PL = torch.stack((kept_E, received_E)).view(2, ranks, -1).tolist()
    return Exchange(
        sent=[sum(row) for row in send_PL],
        received=[sum(row) for row in receive_PL],
        to_expert=_by_expert(receive_PL, kept_E.device),
        kept=[sum(column) for column in zip(*receive_PL, strict=True)],
        group=group,
    )


def _by_expert(receive_PL: list[list[int]], device: torch.device) -> Tensor:
    """Order of rows that lie by (rank, expert) that makes them lie by (expert, rank)."""
    blocks = [rows for row in receive_PL for rows in row]
    starts = [0, *accumulate(blocks)]
    local = len(receive_PL[0])
    order = [
        torch.arange(starts[block], starts[block] + blocks[block])
        for expert in range(local)
        for block in range(expert, len(blocks), local)
    ]
    return torch.cat(order).to(device, non_blocking=True)

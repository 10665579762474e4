"""Moves tokens to the ranks of their experts and back, in blocks of any size.

Ranks may hold different numbers of tokens, none included; nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
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


def plan_exchange(kept_E: Tensor, kept: list[int], group: dist.ProcessGroup) -> Exchange:
    """Tell every rank how many rows each of its experts will get from whom.

    Args:
        kept_E: int64 [E], rows of this rank for each expert; expert e lives on rank e // L.
        kept: the same numbers on the host.
        group: P ranks, P divides E.
    """
    ranks = group.size()
    local = len(kept) // ranks
    received_E = torch.empty_like(kept_E)
    dist.all_to_all_single(received_E, kept_E.contiguous(), group=group)
    received_PL = received_E.view(ranks, local)
    received = received_PL.tolist()  # the host waits for the device: here and in `route` alone
    return Exchange(
        sent=[sum(kept[start : start + local]) for start in range(0, len(kept), local)],
        received=[sum(row) for row in received],
        to_expert=_by_expert(received_PL, sum(map(sum, received))),
        kept=[sum(column) for column in zip(*received, strict=True)],
        group=group,
    )


def _by_expert(received_PL: Tensor, rows: int) -> Tensor:
    """Order of rows that lie by (rank, expert) that makes them lie by (expert, rank)."""
    size_B = received_PL.reshape(-1)
    start_LP = (size_B.cumsum(0) - size_B).view_as(received_PL).t()
    # Blocks in the new order: where each begins there, and where it lies now.
    new_size_B = received_PL.t().reshape(-1)
    shift_B = start_LP.reshape(-1) - (new_size_B.cumsum(0) - new_size_B)
    place_R = torch.arange(rows, device=received_PL.device)
    return place_R + torch.repeat_interleave(shift_B, new_size_B, output_size=rows)

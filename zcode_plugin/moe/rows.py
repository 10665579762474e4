"""From tokens to rows of their experts and back, by gathers alone.

The sum over a token's rows, and the gradient of a token that has several rows, would be scattered
additions, row after row. With the place of each choice at hand both are gathers, which are several
times as fast on a CPU and add in the same order every time on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zcode_plugin.moe.routing import Routing


def row_of_choice(routing: Routing, k: int, num_tokens: int) -> Tensor:
    """int64 [K, T], the row of each choice of each token; A where the choice was not kept."""
    rows = routing.slot_A.numel()
    row_KT = routing.slot_A.new_full((k * num_tokens,), rows)
    row_KT[routing.slot_A] = torch.arange(rows, device=row_KT.device)
    return row_KT.view(k, num_tokens)


def dispatch(x_TM: Tensor, token_A: Tensor, row_KT: Tensor) -> Tensor:
    """[T, M] -> [A, M], the token of each row."""
    return _Dispatch.apply(x_TM, token_A, row_KT)


def combine(y_AM: Tensor, weight_A: Tensor, token_A: Tensor, row_KT: Tensor) -> Tensor:
    """[A, M] -> [T, M], the sum of each token's rows, weighted; 0 for a token without rows."""
    return _Combine.apply(y_AM, weight_A, token_A, row_KT)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TM: Tensor, token_A: Tensor, row_KT: Tensor) -> Tensor:
        ctx.save_for_backward(row_KT)
        return x_TM.index_select(0, token_A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AM: Tensor) -> tuple[Tensor, None, None]:
        (row_KT,) = ctx.saved_tensors
        if grad_AM.size(0) < row_KT.numel():  # not all choices were kept
            grad_AM = torch.cat((grad_AM, grad_AM.new_zeros(1, grad_AM.size(1))))
        return _sum_of_rows(grad_AM, row_KT), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y_AM: Tensor, weight_A: Tensor, token_A: Tensor, row_KT: Tensor
    ) -> Tensor:
        ctx.save_for_backward(y_AM, weight_A, token_A)
        rows, dim = y_AM.shape
        weighted = y_AM.new_empty(rows + 1, dim)
        torch.mul(y_AM, weight_A.unsqueeze(1), out=weighted[:rows])
        weighted[rows] = 0
        return _sum_of_rows(weighted, row_KT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TM: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        y_AM, weight_A, token_A = ctx.saved_tensors
        grad_AM = grad_TM.index_select(0, token_A)
        grad_weight = (grad_AM * y_AM).sum(1) if ctx.needs_input_grad[1] else None
        return grad_AM * weight_A.unsqueeze(1), grad_weight, None, None


def _sum_of_rows(rows_AM: Tensor, row_KT: Tensor) -> Tensor:
    """[T, M]; a place beyond the rows of experts is that of a row of zeros."""
    first_T, *others = row_KT.unbind()
    total_TM = rows_AM.index_select(0, first_T)
    for row_T in others:
        total_TM += rows_AM.index_select(0, row_T)
    return total_TM

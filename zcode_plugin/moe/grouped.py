"""Linear maps of several experts at once, over rows that are grouped by expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zcode_plugin.moe.gradient_storage import GradientStorage


def grouped_linear(
    x_AI: Tensor,
    weight_LOI: Tensor,
    bias_LO: Tensor | None,
    kept: list[int],
    storage: GradientStorage | None = None,
) -> Tensor:
    """y = x @ weight[e].T + bias[e] for the rows of each expert e.

    Args:
        x_AI: [A, I], the rows of expert 0 first, then those of expert 1, and so on.
        weight_LOI: [L, O, I].
        bias_LO: [L, O] or None.
        kept: rows of each expert, L numbers that sum to A.
        storage: where the weight's gradient is written; one for each weight.

    Returns:
        [A, O] of x's dtype.
    """
    if _can_use_grouped_mm(x_AI, weight_LOI):
        return _grouped_mm(x_AI, weight_LOI, bias_LO, kept)
    return _GroupedLinear.apply(x_AI, weight_LOI, bias_LO, kept, storage or GradientStorage())


def _can_use_grouped_mm(x_AI: Tensor, weight_LOI: Tensor) -> bool:
    """The kernel wants bf16 on a GPU, and rows of whole 16-byte steps."""
    return (
        hasattr(torch.nn.functional, "grouped_mm")
        and x_AI.is_cuda
        and x_AI.dtype == weight_LOI.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x_AI.device) >= (8, 0)
        and weight_LOI.size(1) % 8 == 0
        and weight_LOI.size(2) % 8 == 0
    )


def _grouped_mm(
    x_AI: Tensor, weight_LOI: Tensor, bias_LO: Tensor | None, kept: list[int]
) -> Tensor:
    kept_L = torch.tensor(kept).to(x_AI.device, non_blocking=True)
    ends_L = kept_L.cumsum(0).to(torch.int32)
    y_AO = torch.nn.functional.grouped_mm(x_AI, weight_LOI.transpose(1, 2), offs=ends_L)
    if bias_LO is None:
        return y_AO
    expert_A = torch.repeat_interleave(kept_L, output_size=x_AI.size(0))
    return y_AO + bias_LO[expert_A]


def _ranges(kept: list[int]) -> Iterator[tuple[int, slice]]:
    """(expert, rows of the expert) for each expert that has rows."""
    start = 0
    for expert, rows in enumerate(kept):
        if rows:
            yield expert, slice(start, start + rows)
        start += rows


class _GroupedLinear(torch.autograd.Function):
    """A loop over experts whose backward writes all weight gradients into one buffer.

    Indexing one expert out of the stack would make autograd allocate and add up a whole stack per
    expert; `unbind` would write each gradient twice. Here every element is written once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_AI: Tensor,
        weight_LOI: Tensor,
        bias_LO: Tensor | None,
        kept: list[int],
        storage: GradientStorage,
    ) -> Tensor:
        ctx.save_for_backward(x_AI, weight_LOI)
        ctx.storage = storage
        ctx.kept = kept
        ctx.has_bias = bias_LO is not None
        y_AO = x_AI.new_empty(x_AI.size(0), weight_LOI.size(1))
        for expert, rows in _ranges(kept):
            if bias_LO is None:
                torch.mm(x_AI[rows], weight_LOI[expert].t(), out=y_AO[rows])
            else:
                torch.addmm(bias_LO[expert], x_AI[rows], weight_LOI[expert].t(), out=y_AO[rows])
        return y_AO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AO: Tensor) -> tuple[Tensor | None, ...]:
        x_AI, weight_LOI = ctx.saved_tensors
        grad_AO = grad_AO.contiguous()
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        want_bias = want_bias and ctx.has_bias
        grad_x = torch.empty_like(x_AI) if want_x else None
        grad_weight = ctx.storage.empty_like(weight_LOI) if want_weight else None
        grad_bias = weight_LOI.new_empty(weight_LOI.shape[:2]) if want_bias else None
        for expert, rows in _ranges(ctx.kept):
            if grad_x is not None:
                torch.mm(grad_AO[rows], weight_LOI[expert], out=grad_x[rows])
            if grad_weight is not None:
                torch.mm(grad_AO[rows].t(), x_AI[rows], out=grad_weight[expert])
            if grad_bias is not None:
                torch.sum(grad_AO[rows], 0, out=grad_bias[expert])
        for expert, rows in enumerate(ctx.kept):
            if rows == 0:
                for grad in (grad_weight, grad_bias):
                    if grad is not None:
                        grad[expert].zero_()
        return grad_x, grad_weight, grad_bias, None, None

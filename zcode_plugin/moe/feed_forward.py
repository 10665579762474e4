"""The feed-forward networks of several experts, one after the other, as one autograd function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import relu

from zcode_plugin.moe.gradient_storage import GradientStorage

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Between:
    """What happens to hidden values between fc1 and fc2.

    Attributes:
        activation: elementwise.
        dropout: probability; 0 in evaluation.
    """

    activation: Activation
    dropout: float

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input of fc2; what `backward` needs of it; which values dropout kept. May work in place.

        ReLU's gradient can be told from its result. Of other activations the input is kept, and
        the result is computed a second time on the way back: a pass over values that lie in the
        cache by then, for half the memory.
        """
        activated = hidden.relu_() if self.activation is relu else self.activation(hidden)
        saved = activated if self.activation is relu else hidden
        if self.dropout == 0:
            return activated, saved, None
        dropped, mask = torch.native_dropout(activated, self.dropout, train=True)
        return dropped, saved, mask

    def backward(
        self, saved: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Input of fc2 once more; and the function from its gradient to that of fc1's output."""
        if self.activation is relu:
            activated = saved

            def pull_back(grad: Tensor) -> Tensor:
                return torch.ops.aten.threshold_backward(grad, activated, 0)

        else:
            with torch.enable_grad():
                hidden = saved.detach().requires_grad_()
                result = self.activation(hidden)
            activated = result.detach()

            def pull_back(grad: Tensor) -> Tensor:
                return torch.autograd.grad(result, hidden, grad)[0]

        if mask is None:
            return activated, pull_back
        scaled = mask.to(activated.dtype) / (1 - self.dropout)
        return activated * scaled, lambda grad: pull_back(grad * scaled)


class ExpertFeedForward(torch.autograd.Function):
    """y = fc2(between(fc1(x))) for the rows of each expert.

    An expert's hidden values are used while they lie in the cache, and no tensor holds those of
    all experts. Every element of a weight's gradient is written once, into one block: indexing one
    expert out of a stack would make autograd allocate and add up a whole stack per expert, and
    `unbind` would write each gradient twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_AM: Tensor,
        fc1_LFM: Tensor,
        fc1_LF: Tensor | None,
        fc2_LMF: Tensor,
        fc2_LM: Tensor | None,
        kept: list[int],
        between: Between,
        storages: tuple[GradientStorage, GradientStorage],
        with_grad: bool,
    ) -> Tensor:
        """Apply the experts.

        Args:
            x_AM: [A, M], rows grouped by expert.
            fc1_LFM, fc1_LF: [L, F, M] and [L, F], weights and biases; no biases: None.
            fc2_LMF, fc2_LM: [L, M, F] and [L, M], the same.
            kept: rows of each expert, L numbers that sum to A.
            between: what stands between fc1 and fc2.
            storages: where the gradients of the two weights are written.
            with_grad: whether gradients are on; in here they are always off.
        """
        y_AM = x_AM.new_empty(x_AM.size(0), fc2_LMF.size(1))
        values: list[Tensor] = []
        masks: list[Tensor] = []
        for expert, rows in _ranges(kept):
            hidden = _linear(x_AM[rows], fc1_LFM, fc1_LF, expert)
            hidden, saved, mask = between.forward(hidden)
            _linear(hidden, fc2_LMF, fc2_LM, expert, out=y_AM[rows])
            if with_grad and any(ctx.needs_input_grad):
                values.append(saved)
                masks.extend([] if mask is None else [mask])
        ctx.save_for_backward(x_AM, fc1_LFM, fc2_LMF, *values, *masks)
        ctx.kept, ctx.between, ctx.storages = kept, between, storages
        ctx.has_bias = fc1_LF is not None, fc2_LM is not None
        return y_AM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AM: Tensor) -> tuple[Tensor | None, ...]:
        x_AM, fc1_LFM, fc2_LMF, *rest = ctx.saved_tensors
        used = sum(1 for _ in _ranges(ctx.kept))
        values, masks = rest[:used], rest[used:] or [None] * used
        grad_AM = grad_AM.contiguous()
        needs = ctx.needs_input_grad
        grad_x = torch.empty_like(x_AM) if needs[0] else None
        grad_fc1 = _LinearGradient(fc1_LFM, needs[1], ctx.has_bias[0] and needs[2], ctx.storages[0])
        grad_fc2 = _LinearGradient(fc2_LMF, needs[3], ctx.has_bias[1] and needs[4], ctx.storages[1])
        for (expert, rows), saved, mask in zip(_ranges(ctx.kept), values, masks, strict=True):
            hidden, pull_back = ctx.between.backward(saved, mask)
            grad_fc2.write(expert, grad_AM[rows], hidden)
            grad_hidden = pull_back(torch.mm(grad_AM[rows], fc2_LMF[expert]))
            grad_fc1.write(expert, grad_hidden, x_AM[rows])
            if grad_x is not None:
                torch.mm(grad_hidden, fc1_LFM[expert], out=grad_x[rows])
        for gradient in (grad_fc1, grad_fc2):
            gradient.clear_experts_without_rows(ctx.kept)
        return (
            grad_x, grad_fc1.weight, grad_fc1.bias, grad_fc2.weight, grad_fc2.bias,
            None, None, None, None,
        )  # fmt: skip


def _linear(
    x: Tensor, weight_LOI: Tensor, bias_LO: Tensor | None, expert: int, out: Tensor | None = None
) -> Tensor:
    if bias_LO is None:
        return torch.mm(x, weight_LOI[expert].t(), out=out)
    return torch.addmm(bias_LO[expert], x, weight_LOI[expert].t(), out=out)


class _LinearGradient:
    """Gradients of the weight and the bias of all experts, written expert by expert."""

    def __init__(
        self, weight_LOI: Tensor, wants_weight: bool, wants_bias: bool, storage: GradientStorage
    ):
        self.weight = storage.empty_like(weight_LOI) if wants_weight else None
        self.bias = weight_LOI.new_empty(weight_LOI.shape[:2]) if wants_bias else None

    def write(self, expert: int, grad: Tensor, x: Tensor) -> None:
        if self.weight is not None:
            torch.mm(grad.t(), x, out=self.weight[expert])
        if self.bias is not None:
            torch.sum(grad, 0, out=self.bias[expert])

    def clear_experts_without_rows(self, kept: list[int]) -> None:
        for gradient in (self.weight, self.bias):
            for expert, rows in enumerate(kept):
                if gradient is not None and rows == 0:
                    gradient[expert].zero_()


def _ranges(kept: list[int]) -> Iterator[tuple[int, slice]]:
    """(expert, rows of the expert) for each expert that has rows."""
    start = 0
    for expert, rows in enumerate(kept):
        if rows:
            yield expert, slice(start, start + rows)
        start += rows

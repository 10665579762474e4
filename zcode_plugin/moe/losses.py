"""Losses of the gate. All are means over the tokens that are routed, in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def balance_loss(*, gate_TE: Tensor, expert_T: Tensor, keep_T: Tensor | None) -> Tensor:
    """E * sum_e mean_t(gate_te) * mean_t(expert e is t's first choice); 1 when balanced.

    The form of Switch Transformers (arXiv 2101.03961, equation 4) and DeepSpeed, taken before any
    token is dropped. fairscale's `Top2Gate` reports the mean over experts of the same products,
    which is E * E times smaller.

    Args:
        gate_TE: float32 [T, E], softmax of the gate; carries the gradient.
        expert_T: int64 [T], first choices.
        keep_T: bool [T], False for padding; None keeps all.
    """
    num_experts = gate_TE.size(1)
    weight_T = torch.ones_like(gate_TE[:, 0]) if keep_T is None else keep_T.to(gate_TE.dtype)
    tokens = weight_T.sum().clamp(min=1)
    chosen_E = gate_TE.new_zeros(num_experts).scatter_add_(0, expert_T, weight_T)
    return num_experts * torch.dot(weight_T @ gate_TE / tokens, chosen_E / tokens)


def z_loss(*, logits_TE: Tensor, keep_T: Tensor | None) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, equation 5)."""
    square_T = logits_TE.logsumexp(dim=1).square()
    if keep_T is None:
        return square_T.sum() / max(square_T.numel(), 1)
    return (square_T * keep_T).sum() / keep_T.sum().clamp(min=1)

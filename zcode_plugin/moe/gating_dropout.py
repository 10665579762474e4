"""Gating dropout (arXiv 2205.14336): now and then the gate is ignored and no token travels.

With the policy `local` (the paper's Gate-Drop) every token goes to an expert of its own rank; the
paper has one expert on each rank, here the tokens are dealt out at random, in equal shares, to
those of the rank. With `skip` (Gate-Expert-Drop) they skip the experts as well, and the layer
gives what its residual connection gives. In evaluation the gate always decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GatingDropoutPolicy = Literal["local", "skip"]


@dataclass(frozen=True)
class GatingDropout:
    """How often, and what instead.

    Attributes:
        probability: share of a layer's training passes in which the gate is ignored. All ranks
            must agree, see `CallContext.coin`.
        policy: `local` or `skip`.
    """

    probability: float = 0.0
    policy: GatingDropoutPolicy = "local"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"gating dropout must lie in [0, 1], it is {self.probability}")


def deal_out(padding_T: Tensor, num_experts: int) -> tuple[Tensor, list[int]]:
    """Deal tokens out to experts at random, in shares that differ by one at most.

    Args:
        padding_T: bool [T], True where a token is padding and goes nowhere.
        num_experts: experts of this rank.

    Returns:
        int64 [A], tokens grouped by expert; and how many each expert has.
    """
    token_A = (~padding_T).nonzero().squeeze(1)
    tokens = token_A.numel()
    token_A = token_A[torch.randperm(tokens, device=token_A.device)]
    share, rest = divmod(tokens, num_experts)
    return token_A, [share + (expert < rest) for expert in range(num_experts)]

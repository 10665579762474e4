"""Which token goes to which expert: pure functions with one frozen result.

Routing is by index. No tensor of tokens x experts x capacity exists anywhere; memory grows with
the number of assignments alone. See `zcode_plugin.moe` for the legend of the shape suffixes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TokenPriority = Literal["rts", "position", "gate"]


@dataclass(frozen=True)
class Routing:
    """The kept assignments of one call, grouped by expert.

    Rows of one expert are contiguous, experts ascend. Padding and dropped assignments are absent.

    Attributes:
        token_A: int64 [A], the token of each kept assignment.
        slot_A: int64 [A], index of the assignment in the flattened [K, T] table of choices.
        kept_E: int64 [E], number of kept assignments of each expert; sums to A.
        kept: the same E numbers on the host.
        demand_E: int64 [E], number of assignments that asked for each expert, dropped ones
            included, padding not.
    """

    token_A: Tensor
    slot_A: Tensor
    kept_E: Tensor
    kept: list[int]
    demand_E: Tensor


def capacity(
    num_tokens: int, num_experts: int, k: int, factor: float, min_capacity: int = 4
) -> int:
    """Most assignments that one expert accepts from `num_tokens` tokens.

    max(min_capacity, ceil(k * num_tokens / num_experts * factor)), never above the token count
    (an expert cannot be chosen twice by one token). A factor of 0 means: never drop.
    Source: the definition of GShard (arXiv 2006.16668), with DeepSpeed's lower bound.
    """
    if factor <= 0:
        return num_tokens
    # Rounded before ceil: 0.1 * 30 is 3.0000000000000004 and must not become 4.
    wanted = math.ceil(round(k * num_tokens / num_experts * factor, 6))
    return min(num_tokens, max(min_capacity, wanted))


def capacity_of_unpadded(
    padding_T: Tensor, num_experts: int, k: int, factor: float, min_capacity: int = 4
) -> Tensor:
    """`capacity` of the tokens that are no padding, int64 scalar; the device counts them itself.

    The factor is above 0.
    """
    num_tokens = (~padding_T).sum()
    wanted = (k * num_tokens).double() / num_experts * factor
    wanted = wanted.round(decimals=6).ceil().long().clamp(min=min_capacity)
    return torch.minimum(num_tokens, wanted)


def route(
    expert_KT: Tensor,
    num_experts: int,
    capacity: int | Tensor,
    *,
    priority_T: Tensor | None = None,
    padding_T: Tensor | None = None,
) -> Routing:
    """Group the choices by expert and keep at most `capacity` of each expert's.

    When an expert is asked for more than `capacity` times, first choices of tokens go before
    second choices, and so on; among equal choices the tokens with the greater priority stay;
    among equal priorities those that come first.

    Args:
        expert_KT: int64 [K, T], the expert of each choice; row 0 holds the first choices.
        num_experts: E.
        capacity: most assignments per expert; a number or a scalar on the device.
        priority_T: float32 [T], non-negative. Uniform draws give random token selection (RTS),
            gate scores batch-prioritised routing, None first come, first served.
        padding_T: bool [T], True where a token must not be routed.
    """
    k, num_tokens = expert_KT.shape
    expert_A = expert_KT.reshape(-1)
    if padding_T is not None:
        # Padding sorts behind the last expert, where nothing is kept.
        expert_A = torch.where(padding_T.repeat(k), num_experts, expert_A)
    slot_A = _order(expert_A, k, num_tokens, priority_T)
    demand_E = torch.zeros(num_experts + 1, dtype=torch.int64, device=expert_A.device)
    demand_E = demand_E.scatter_add_(0, expert_A, torch.ones_like(expert_A))[:num_experts]
    drops = not isinstance(capacity, int) or capacity < num_tokens
    kept_E = demand_E.clamp(max=capacity) if drops else demand_E
    kept = kept_E.tolist()  # the host waits for the device: here and in `plan_exchange` alone
    total = sum(kept)
    slot_A = _within_capacity(slot_A, demand_E, kept_E, total) if drops else slot_A[:total]
    token_A = slot_A if k == 1 else slot_A % max(num_tokens, 1)
    return Routing(token_A, slot_A, kept_E, kept, demand_E)


def _within_capacity(slot_A: Tensor, demand_E: Tensor, kept_E: Tensor, total: int) -> Tensor:
    """The first `kept_E` rows of each expert, of its `demand_E`."""
    # Rows that fell behind the capacity of the experts before.
    skipped_E = (demand_E - kept_E).cumsum(0) - (demand_E - kept_E)
    place_A = torch.arange(total, device=slot_A.device)
    place_A = place_A + torch.repeat_interleave(skipped_E, kept_E, output_size=total)
    return slot_A[place_A]


def _order(expert_A: Tensor, k: int, num_tokens: int, priority_T: Tensor | None) -> Tensor:
    """Indices that sort by expert, then choice, then descending priority, then position."""
    if priority_T is None:
        # Assignments stand in the order of (choice, token): a stable sort is enough.
        return torch.sort(expert_A, stable=True).indices
    choice_A = torch.arange(k, device=expert_A.device).repeat_interleave(num_tokens)
    # The bits of a non-negative float32 order as the float does, so that one integer sort, exact
    # to the last bit, takes the place of two.
    urgency_T = (2**31 - 1) - priority_T.float().contiguous().view(torch.int32).long()
    key_A = ((expert_A * k + choice_A) << 32) | urgency_T.repeat(k)
    return torch.sort(key_A, stable=True).indices


def token_priority(kind: TokenPriority, score_T: Tensor) -> Tensor | None:
    """Priorities for `route`; random ones are drawn from the default generator.

    Args:
        kind: `rts` (uniform draws), `gate` (the score itself) or `position` (None).
        score_T: float32 [T], the gate's score of the first choice.
    """
    if kind == "position":
        return None
    if kind == "gate":
        return score_T.detach()
    if kind == "rts":
        return torch.rand(score_T.shape, device=score_T.device)
    raise ValueError(f"token priority {kind!r} is none of rts, position, gate")

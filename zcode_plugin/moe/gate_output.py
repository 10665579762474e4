"""What a gate gives to its layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from zcode_plugin.moe.losses import balance_loss, z_loss
from zcode_plugin.moe.routing import Routing
from zcode_plugin.moe.stats import LayerStats


@dataclass(frozen=True)
class Scores:
    """What a learned gate thinks of every expert.

    Attributes:
        logits_TE: float32 [T, E], carries the gradient to the gate.
        gate_TE: their softmax.
        padding_T: bool [T], True where a token is padding; None where none is.
    """

    logits_TE: Tensor
    gate_TE: Tensor
    padding_T: Tensor | None


@dataclass(frozen=True)
class GateOutput:
    """Routing of one call with the combine weight of each kept assignment.

    Attributes:
        routing: see `Routing`.
        weight_A: float32 [A], carries the gradient to the gate.
        expert_TK: int64 [T, K], the choices, dropped ones and those of padding included.
        scores: of a gate that has any.
    """

    routing: Routing
    weight_A: Tensor
    expert_TK: Tensor
    scores: Scores | None = field(default=None, repr=False)

    @cached_property
    def entropy_T(self) -> Tensor:
        """float32 [T], entropy of the gate's distribution, in nats; 0 without scores."""
        if self.scores is None:
            return torch.zeros(self.expert_TK.size(0), device=self.expert_TK.device)
        with torch.no_grad():
            return -torch.special.xlogy(self.scores.gate_TE, self.scores.gate_TE).sum(1)

    @cached_property
    def stats(self) -> LayerStats:
        """Losses and load, computed when asked for: a translation step asks for none."""
        routing = self.routing
        demand = routing.demand_E.sum()
        balance, z, entropy = self._losses()
        return LayerStats(
            balance,
            z,
            tokens=demand // self.expert_TK.size(1),
            dropped=demand - routing.kept_E.sum(),
            entropy=entropy,
            load_E=routing.demand_E,
        )

    def _losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """Balance loss, z-loss, and the sum of the entropies."""
        scores = self.scores
        if scores is None:
            zero = torch.zeros((), device=self.expert_TK.device)
            return zero, zero, zero
        keep_T = None if scores.padding_T is None else ~scores.padding_T
        entropy_T = self.entropy_T if keep_T is None else self.entropy_T * keep_T
        return (
            balance_loss(gate_TE=scores.gate_TE, expert_T=self.expert_TK[:, 0], keep_T=keep_T),
            z_loss(logits_TE=scores.logits_TE, keep_T=keep_T),
            entropy_T.sum(),
        )

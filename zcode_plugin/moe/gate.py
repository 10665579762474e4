"""The gate: scores every expert for every token and chooses K of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zcode_plugin.moe.losses import balance_loss, z_loss
from zcode_plugin.moe.routing import Routing, TokenPriority, capacity, route, token_priority
from zcode_plugin.moe.stats import LayerStats


@dataclass(frozen=True)
class GateOptions:
    """How a gate chooses.

    Attributes:
        k: experts per token.
        capacity_factor, eval_capacity_factor: see `routing.capacity`; 0 never drops.
        min_capacity: least capacity of an expert when there is one.
        token_priority: which tokens stay when an expert is full, in training. Evaluation is
            deterministic: `rts` becomes `position` there.
        jitter_eps: in training, the gate's input is multiplied by uniform draws from
            [1 - eps, 1 + eps].
        normalize: divide the combine weights of a token by their sum; None means when k > 1.
        normalize_before_dropping: take that sum over all choices rather than the kept ones.
        fp32: compute the gate in float32 whatever the model's dtype.
    """

    k: int = 1
    capacity_factor: float = 1.0
    eval_capacity_factor: float = 0.0
    min_capacity: int = 4
    token_priority: TokenPriority = "rts"
    jitter_eps: float = 0.0
    normalize: bool | None = None
    normalize_before_dropping: bool = False
    fp32: bool = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"a token needs at least 1 expert, k is {self.k}")
        if not 0 <= self.jitter_eps < 1:
            raise ValueError(f"jitter must lie in [0, 1), it is {self.jitter_eps}")


@dataclass(frozen=True)
class GateOutput:
    """Routing of one call with the combine weight of each kept assignment.

    Attributes:
        routing: see `Routing`.
        weight_A: float32 [A], carries the gradient to the gate.
        stats: losses and load.
    """

    routing: Routing
    weight_A: Tensor
    stats: LayerStats = field(repr=False)


class TopKGate(nn.Module):
    """Linear gate without bias, softmax over all experts, top-k choice.

    Args:
        model_dim: M.
        num_experts: E, over all ranks.
        options: see `GateOptions`.
    """

    def __init__(self, model_dim: int, num_experts: int, options: GateOptions | None = None):
        super().__init__()
        self.options = options or GateOptions()
        if self.options.k > num_experts:
            raise ValueError(
                f"top-{self.options.k} needs that many experts, there are {num_experts}"
            )
        self.num_experts = num_experts
        self.wg = nn.Linear(model_dim, num_experts, bias=False)
        # Normalised inputs then give logits of deviation 1. With a much smaller start all experts
        # get the weight 1 / E for long, and their outputs hardly count.
        nn.init.normal_(self.wg.weight, std=model_dim**-0.5)

    def forward(self, x_TM: Tensor, padding_T: Tensor | None = None) -> GateOutput:
        """Choose experts for tokens.

        Args:
            x_TM: [T, M] of any float dtype.
            padding_T: bool [T], True where a token is padding.
        """
        options = self.options
        logits_TE = self._logits(x_TM)
        gate_TE = logits_TE.softmax(dim=1)
        score_TK, expert_TK = gate_TE.topk(options.k, dim=1)
        keep_T = None if padding_T is None else ~padding_T
        num_tokens = x_TM.size(0) if keep_T is None else int(keep_T.sum())
        factor = options.capacity_factor if self.training else options.eval_capacity_factor
        priority = options.token_priority
        if not self.training and priority == "rts":
            priority = "position"
        routing = route(
            expert_TK.t(),
            self.num_experts,
            capacity(num_tokens, self.num_experts, options.k, factor, options.min_capacity),
            priority_T=token_priority(priority, score_TK[:, 0]),
            padding_T=padding_T,
        )
        weight_A = self._combine_weights(score_TK, routing)
        demand = routing.demand_E.sum()
        with torch.no_grad():
            entropy_T = -torch.special.xlogy(gate_TE, gate_TE).sum(1)
            entropy = (entropy_T if keep_T is None else entropy_T * keep_T).sum()
        stats = LayerStats(
            balance_loss(gate_TE=gate_TE, expert_T=expert_TK[:, 0], keep_T=keep_T),
            z_loss(logits_TE=logits_TE, keep_T=keep_T),
            tokens=demand // options.k,
            dropped=demand - routing.kept_E.sum(),
            entropy=entropy,
            load_E=routing.demand_E,
        )
        return GateOutput(routing, weight_A, stats)

    def _logits(self, x_TM: Tensor) -> Tensor:
        """[T, E] of at least float32, with jitter in training."""
        weight = self.wg.weight
        precise = torch.promote_types(x_TM.dtype, torch.float32)
        if self.options.fp32:
            x_TM, weight = x_TM.to(precise), weight.to(precise)
        if self.training and self.options.jitter_eps > 0:
            noise_TM = torch.empty_like(x_TM).uniform_(
                1 - self.options.jitter_eps, 1 + self.options.jitter_eps
            )
            x_TM = x_TM * noise_TM
        with torch.autocast(x_TM.device.type, enabled=False):
            return nn.functional.linear(x_TM, weight).to(precise)

    def _combine_weights(self, score_TK: Tensor, routing: Routing) -> Tensor:
        """float32 [A]: the scores of the kept assignments, normalised as the options say."""
        options = self.options
        normalize = options.k > 1 if options.normalize is None else options.normalize
        weight_A = score_TK.t().reshape(-1)[routing.slot_A]
        if not normalize:
            return weight_A
        if options.normalize_before_dropping:
            total_T = score_TK.sum(1)
        else:
            total_T = weight_A.new_zeros(score_TK.size(0)).index_add(0, routing.token_A, weight_A)
        eps = torch.finfo(total_T.dtype).eps
        return weight_A / total_T.clamp(min=eps)[routing.token_A]

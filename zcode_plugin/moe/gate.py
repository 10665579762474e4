"""The gate: scores every expert for every token and chooses K of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zcode_plugin.moe.context import CallContext, ids_of_tokens
from zcode_plugin.moe.gate_output import GateOutput, Scores
from zcode_plugin.moe.routing import (
    Routing,
    TokenPriority,
    capacity,
    capacity_of_unpadded,
    route,
    token_priority,
)
from zcode_plugin.moe.token_signs import SIGNS, token_signs

SecondExpertPolicy = Literal["score", "sampling"]


@dataclass(frozen=True)
class GateOptions:
    """How a gate chooses.

    Attributes:
        k: experts per token.
        capacity_factor, eval_capacity_factor: see `routing.capacity`; 0 never drops.
        min_capacity: least capacity of an expert when there is one.
        token_priority: which tokens stay when an expert is full, in training. Evaluation is
            deterministic: `rts` becomes `position` there.
        eval_rts: leave `rts` as it is in evaluation, to measure what training drops.
        second_expert_policy: how the experts after the first are chosen: the next best scores, or,
            in training, drawn without replacement from the gate's distribution over the others.
        selection_bias: choose by score + bias (arXiv 2408.15664); the weights stay unbiased.
        jitter_eps: in training, the gate's input is multiplied by uniform draws from
            [1 - eps, 1 + eps].
        output_masking: in training, each combine weight becomes 0 with this probability, so that
            the expert's output is lost to the token; the others grow by 1 / (1 - probability), so
            that evaluation needs no scaling (NLLB, arXiv 2207.04672).
        sees_token: the gate reads the signs of the token's id, too, see `token_signs`.
        normalize: divide the combine weights of a token by their sum; None means when k > 1.
        normalize_before_dropping: take that sum over all choices rather than the kept ones.
        fp32: compute the gate in float32 whatever the model's dtype.
    """

    k: int = 1
    capacity_factor: float = 1.0
    eval_capacity_factor: float = 0.0
    min_capacity: int = 4
    token_priority: TokenPriority = "rts"
    eval_rts: bool = False
    second_expert_policy: SecondExpertPolicy = "score"
    selection_bias: bool = False
    jitter_eps: float = 0.0
    output_masking: float = 0.0
    sees_token: bool = False
    normalize: bool | None = None
    normalize_before_dropping: bool = False
    fp32: bool = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"a token needs at least 1 expert, k is {self.k}")
        if not 0 <= self.jitter_eps < 1:
            raise ValueError(f"jitter must lie in [0, 1), it is {self.jitter_eps}")
        if not 0 <= self.output_masking < 1:
            raise ValueError(f"output masking must lie in [0, 1), it is {self.output_masking}")
        if self.selection_bias and self.second_expert_policy == "sampling":
            raise ValueError("a selection bias needs experts chosen by score, not by sampling")

    @property
    def normalizes(self) -> bool:
        """Whether a token's combine weights are made to sum to 1."""
        return self.k > 1 if self.normalize is None else self.normalize


class Gate(nn.Module):
    """What all gates share: the number of experts, the options, and routing under a capacity.

    `forward(x_TM, padding_T, context)` returns a `GateOutput`.

    Args:
        num_experts: E, over all ranks.
        options: see `GateOptions`.
    """

    def __init__(self, num_experts: int, options: GateOptions | None = None):
        super().__init__()
        self.options = options or GateOptions()
        if self.options.k > num_experts:
            raise ValueError(
                f"top-{self.options.k} needs that many experts, there are {num_experts}"
            )
        self.num_experts = num_experts

    def _route(self, expert_TK: Tensor, score_T: Tensor, padding_T: Tensor | None) -> Routing:
        """Keep what fits; `score_T` decides where the priority of tokens is their score."""
        options = self.options
        factor = options.capacity_factor if self.training else options.eval_capacity_factor
        limits = self.num_experts, options.k, factor, options.min_capacity
        priority = options.token_priority
        if priority == "rts" and not (self.training or options.eval_rts):
            priority = "position"
        limit: int | Tensor
        if padding_T is None or factor <= 0:  # padding asks for no expert
            limit = capacity(expert_TK.size(0), *limits)
        else:
            limit = capacity_of_unpadded(padding_T, *limits)
        return route(
            expert_TK.t(),
            self.num_experts,
            limit,
            priority_T=token_priority(priority, score_T),
            padding_T=padding_T,
        )

    def _mask_outputs(self, weight_A: Tensor) -> Tensor:
        probability = self.options.output_masking
        if not self.training or probability == 0:
            return weight_A
        return nn.functional.dropout(weight_A, probability)


class TopKGate(Gate):
    """Linear gate without bias, softmax over all experts, choice of k.

    With `sees_token` its weight, [E, M + 64], reads the signs of the token after the input. With
    `selection_bias` it has a float32 buffer of that name, [E], in the state dict.

    Args:
        model_dim: M.
        num_experts, options: see `Gate`.
    """

    selection_bias: Tensor | None

    def __init__(self, model_dim: int, num_experts: int, options: GateOptions | None = None):
        super().__init__(num_experts, options)
        signs = SIGNS if self.options.sees_token else 0
        self.wg = nn.Linear(model_dim + signs, num_experts, bias=False)
        # Normalised inputs then give logits of deviation 1. With a much smaller start all experts
        # get the weight 1 / E for long, and their outputs hardly count.
        nn.init.normal_(self.wg.weight[:, :model_dim], std=model_dim**-0.5)
        # Logits of deviation 4: at first it is the token that decides.
        nn.init.normal_(self.wg.weight[:, model_dim:], std=4 * SIGNS**-0.5)
        bias = torch.zeros(num_experts) if self.options.selection_bias else None
        self.register_buffer("selection_bias", bias)

    def forward(
        self, x_TM: Tensor, padding_T: Tensor | None = None, context: CallContext | None = None
    ) -> GateOutput:
        """Choose experts for tokens.

        Args:
            x_TM: [T, M] of any float dtype.
            padding_T: bool [T], True where a token is padding.
            context: has the ids of the T tokens; needed where the gate sees them.

        Raises:
            ValueError: the ids are needed and missing, or are not T.
        """
        logits_TE = self._logits(x_TM, context)
        gate_TE = logits_TE.softmax(dim=1)
        score_TK, expert_TK = self._choose(logits_TE, gate_TE)
        routing = self._route(expert_TK, score_TK[:, 0], padding_T)
        weight_A = self._mask_outputs(self._combine_weights(score_TK, routing))
        scores = Scores(logits_TE, gate_TE, padding_T)
        return GateOutput(routing, weight_A, expert_TK, scores)

    def _logits(self, x_TM: Tensor, context: CallContext | None) -> Tensor:
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
        if self.options.sees_token:
            id_T = ids_of_tokens(context, x_TM.size(0))
            x_TM = torch.cat((x_TM, token_signs(id_T).to(x_TM.dtype)), dim=1)
        with torch.autocast(x_TM.device.type, enabled=False):
            return nn.functional.linear(x_TM, weight).to(precise)

    def _choose(self, logits_TE: Tensor, gate_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and experts of the choices of each token, both [T, K], first choices first."""
        k = self.options.k
        if self.selection_bias is not None:
            expert_TK = (gate_TE.detach() + self.selection_bias).topk(k, dim=1).indices
        elif k > 1 and self.training and self.options.second_expert_policy == "sampling":
            expert_TK = sample_further_experts(logits_TE, k)
        else:
            return gate_TE.topk(k, dim=1)
        return gate_TE.gather(1, expert_TK), expert_TK

    def _combine_weights(self, score_TK: Tensor, routing: Routing) -> Tensor:
        """float32 [A]: the scores of the kept assignments, normalised as the options say."""
        options = self.options
        weight_A = score_TK.t().reshape(-1)[routing.slot_A]
        if not options.normalizes:
            return weight_A
        if options.normalize_before_dropping:
            total_T = score_TK.sum(1)
        else:
            total_T = weight_A.new_zeros(score_TK.size(0)).index_add(0, routing.token_A, weight_A)
        eps = torch.finfo(total_T.dtype).eps
        return weight_A / total_T.clamp(min=eps)[routing.token_A]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TopKGate:
        # The bias moves in steps of 0.001: half precision would lose them.
        bias = self.selection_bias
        super()._apply(fn, recurse)
        if bias is not None and self.selection_bias is not None:
            self.selection_bias = bias.to(self.selection_bias.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = f"{prefix}selection_bias"
        if self.selection_bias is not None:
            # Weights that were trained with another balance start without bias.
            state_dict.setdefault(key, torch.zeros_like(self.selection_bias))
        else:
            state_dict.pop(key, None)  # and the reverse: this balance has none
        super()._load_from_state_dict(state_dict, prefix, *args)


def sample_further_experts(logits_TE: Tensor, k: int) -> Tensor:
    """Experts [T, k]: the best one, then draws without replacement from the softmax of the others.

    The greatest of logits with Gumbel noise is a draw from their softmax, the greatest k - 1 are
    draws without replacement (arXiv 1903.06059). GShard chooses its second expert so.
    """
    first_T1 = logits_TE.argmax(dim=1, keepdim=True)
    gumbel_TE = -torch.empty_like(logits_TE).exponential_().log()
    others_TE = (logits_TE.detach() + gumbel_TE).scatter(1, first_T1, -torch.inf)
    return torch.cat((first_T1, others_TE.topk(k - 1, dim=1).indices), dim=1)

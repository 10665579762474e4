"""Gates that learn nothing: the baselines that every claim about a learned gate needs.

All choices of a token weigh the same, 1 / k. There is no balance loss, no z-loss and no entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zcode_plugin.moe.context import CallContext, ids_of_tokens
from zcode_plugin.moe.gate import Gate
from zcode_plugin.moe.gate_output import GateOutput
from zcode_plugin.moe.token_signs import GOLDEN

# Of the product the high bits are the hash.
_HIGH_BITS = 33


class HashGate(Gate):
    """The expert is a fixed function of the token's id (Hash Layers, arXiv 2106.04426).

    The function is the same in all layers and on all machines; further experts of a token are the
    next ones by number.
    """

    def forward(
        self, x_TM: Tensor, padding_T: Tensor | None = None, context: CallContext | None = None
    ) -> GateOutput:
        """Choose experts for tokens.

        Args:
            x_TM: [T, M], of which the shape alone matters.
            padding_T: bool [T], True where a token is padding.
            context: has the ids of the T tokens.

        Raises:
            ValueError: the ids are missing, or are not T.
        """
        return self._equal_weights(self._hashed(x_TM.size(0), context), padding_T)

    def _hashed(self, num_tokens: int, context: CallContext | None) -> Tensor:
        id_T = ids_of_tokens(context, num_tokens)
        return hash_experts(id_T, self.num_experts, self.options.k)

    def _equal_weights(self, expert_TK: Tensor, padding_T: Tensor | None) -> GateOutput:
        k = self.options.k
        score_T = torch.full(expert_TK.shape[:1], 1 / k, device=expert_TK.device)
        routing = self._route(expert_TK, score_T, padding_T)
        weight_A = self._mask_outputs(score_T[routing.token_A])
        return GateOutput(routing, weight_A, expert_TK)


class RandomGate(HashGate):
    """Experts drawn anew in every training pass, uniformly (THOR, arXiv 2110.04260).

    Evaluation must give the same translation twice, and the same in every batch: there the experts
    are those of `HashGate`.
    """

    def forward(
        self, x_TM: Tensor, padding_T: Tensor | None = None, context: CallContext | None = None
    ) -> GateOutput:
        """See `HashGate.forward`; in training the context is not needed."""
        if not self.training:
            return super().forward(x_TM, padding_T, context)
        draw_TE = torch.rand(x_TM.size(0), self.num_experts, device=x_TM.device)
        return self._equal_weights(draw_TE.topk(self.options.k, dim=1).indices, padding_T)


def hash_experts(id_T: Tensor, num_experts: int, k: int) -> Tensor:
    """Experts [T, k] of token ids [T], k different ones."""
    hash_T = ((id_T.long() + 1) * GOLDEN) >> _HIGH_BITS & 0x7FFFFFFF
    return (hash_T.unsqueeze(1) + torch.arange(k, device=id_T.device)) % num_experts

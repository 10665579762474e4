"""The Mixture-of-Experts layer."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
import torch.distributed as dist
from fairscale.nn import MOELayer as FairscaleMOELayer
from torch import Tensor, nn

from zcode_plugin.moe.context import CallContext
from zcode_plugin.moe.exchange import Exchange, plan_exchange
from zcode_plugin.moe.expert_list import ExpertList
from zcode_plugin.moe.expert_stacks import ExpertStacks
from zcode_plugin.moe.gate import Gate
from zcode_plugin.moe.gate_output import GateOutput
from zcode_plugin.moe.gating_dropout import GatingDropout, deal_out
from zcode_plugin.moe.load import current_statistics
from zcode_plugin.moe.residual import ResidualExpert
from zcode_plugin.moe.rows import combine, dispatch, row_of_choice
from zcode_plugin.moe.slots import apply_slots
from zcode_plugin.moe.stats import LayerStats


class MOELayer(FairscaleMOELayer):
    """fairscale's `MOELayer` with index-based, ragged dispatch.

    Choose experts, group tokens by expert, exchange them with the ranks of the group, apply the
    local experts, exchange back, combine. Ranks may hold different numbers of tokens. Needs no
    process group when all experts live on this rank.

    In the place of fairscale's layer it takes what that takes: a gate that returns fairscale's
    triple, one module or an `nn.ModuleList` as experts, and without a group the whole world.

    Args:
        gate: chooses experts, see `Gate`; or one of fairscale's kind, see `slots`.
        experts: the experts of this rank: `ExpertStacks`, or modules that map rows to rows.
        group: ranks over which the experts are spread, in the order of expert numbers. None means
            that all `ExpertStacks` live here, and for other modules the whole world.
        residual: a dense network beside the experts.
        gating_dropout: in training the gate is ignored now and then.

    Attributes:
        wrap_exchange: what becomes of each exchange of tokens; tensor slicing sends parts of rows.
    """

    wrap_exchange: Callable[[Exchange], Any] | None = None

    def __init__(
        self,
        gate: nn.Module,
        experts: nn.Module,
        group: dist.ProcessGroup | None = None,
        *,
        residual: ResidualExpert | None = None,
        gating_dropout: GatingDropout | None = None,
    ):
        # Not fairscale's own __init__, which asks for an initialised process group.
        nn.Module.__init__(self)
        is_foreign = not isinstance(experts, ExpertStacks)
        local = _expert_list(experts) if is_foreign else cast(ExpertStacks, experts)
        if group is None and is_foreign and dist.is_initialized():
            group = dist.group.WORLD
        self.world_size = 1 if group is None else group.size()
        self.num_local_experts = local.num_local
        self._check_count(getattr(gate, "num_experts", None))
        self.gate = gate
        self.experts = local
        self.residual = residual
        self.gating_dropout = gating_dropout or GatingDropout()
        self.group: dist.ProcessGroup | None = group if self.world_size > 1 else None
        if self.group is not None or is_foreign:
            for parameter in local.parameters():
                # fairscale's and fairseq's mark of a parameter that ranks do not share.
                parameter.expert = True  # type: ignore[attr-defined]

    def _check_count(self, num_experts: int | None) -> None:
        if num_experts not in (None, self.world_size * self.num_local_experts):
            raise ValueError(
                f"the gate knows {num_experts} experts, but {self.world_size} ranks hold "
                f"{self.num_local_experts} each"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> MOELayer:
        # fairseq's EMA deep-copies the model; process groups cannot be copied and must not be,
        # and the loss of the last call is no leaf.
        memo[id(self.group)] = self.group
        state = {name: value for name, value in self.__dict__.items() if name != "l_aux"}
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        copy.__dict__ = deepcopy(state, memo)
        return copy

    def forward(self, *input: Tensor, **kwargs: Any) -> Tensor:
        """fairscale's interface: the output alone, the balance loss in `l_aux`."""
        if not isinstance(self.gate, Gate):
            return self._fill_slots(input[0])
        output, stats = self.forward_with_stats(
            input[0], kwargs.get("padding_mask"), kwargs.get("context")
        )
        self.l_aux = stats[0]
        return output

    def forward_with_stats(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        context: CallContext | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Apply the layer.

        Args:
            x: [..., M]; all leading dimensions together are the T tokens.
            padding_mask: bool of x's leading shape, True at padding, or None.
            context: of this call; gating dropout needs one, and a gate that chooses by tokens.

        Returns:
            The output, of x's shape and dtype, 0 where a token is padding or was dropped by all
            of its experts, before a residual expert adds its part; and `LayerStats` packed in a
            vector.
        """
        output, stats = self._route_and_apply(x, padding_mask, context)
        return output, stats().pack()

    def forward_without_stats(
        self, x: Tensor, padding_mask: Tensor | None = None, context: CallContext | None = None
    ) -> Tensor:
        """The output of `forward_with_stats`; the statistics are not computed."""
        return self._route_and_apply(x, padding_mask, context)[0]

    def _route_and_apply(
        self, x: Tensor, padding_mask: Tensor | None, context: CallContext | None
    ) -> tuple[Tensor, Callable[[], LayerStats]]:
        x_TM = x.reshape(-1, x.size(-1))
        padding_T = None if padding_mask is None else padding_mask.reshape(-1)
        if self._ignores_gate(context):
            output_TM, stats = self._stay_home(x_TM, padding_T)
        else:
            output_TM, stats = self._follow_gate(x_TM, padding_T, context)
        output = output_TM.view_as(x)
        if self.residual is not None:
            output = self.residual(x, output)
        return output, stats

    def _follow_gate(
        self, x_TM: Tensor, padding_T: Tensor | None, context: CallContext | None
    ) -> tuple[Tensor, Callable[[], LayerStats]]:
        gated = cast(GateOutput, self.gate(x_TM, padding_T, context))
        routing = gated.routing
        row_KT = row_of_choice(routing, gated.expert_TK.size(1), x_TM.size(0))
        x_AM = dispatch(x_TM, routing.token_A, row_KT)
        y_AM = self._apply_experts(x_AM, routing.kept_E, routing.kept)
        statistics = current_statistics()
        if statistics is not None:
            statistics.record(context, gated, padding_T, y_AM)
        weight_A = gated.weight_A.to(y_AM.dtype)
        output_TM = combine(y_AM, weight_A, routing.token_A, row_KT)
        return output_TM, lambda: gated.stats

    def _ignores_gate(self, context: CallContext | None) -> bool:
        probability = self.gating_dropout.probability
        if not self.training or probability == 0:
            return False
        if context is None or not context.key:
            raise ValueError("gating dropout needs a context whose key all ranks share")
        return context.coin(probability)

    def _stay_home(
        self, x_TM: Tensor, padding_T: Tensor | None
    ) -> tuple[Tensor, Callable[[], LayerStats]]:
        """Gating dropout: the experts of this rank or none, without the gate and its losses."""
        num_experts = cast(Gate, self.gate).num_experts
        output_TM = torch.zeros_like(x_TM)
        if self.gating_dropout.policy == "local":
            if padding_T is None:
                padding_T = x_TM.new_zeros(x_TM.size(0), dtype=torch.bool)
            token_A, kept = deal_out(padding_T, self.num_local_experts)
            y_AM = self.experts(x_TM.index_select(0, token_A), kept)
            output_TM = output_TM.index_copy(0, token_A, y_AM)
        return output_TM, lambda: LayerStats.empty(num_experts, x_TM.device)

    def _fill_slots(self, x: Tensor) -> Tensor:
        """The layer behind a gate of fairscale's kind."""
        x_TM = x.reshape(-1, x.size(-1))
        self.l_aux, combine_TEC, dispatch_TEC = self.gate(x_TM)
        self._check_count(combine_TEC.size(1))
        return apply_slots(x_TM, combine_TEC, dispatch_TEC, self._apply_experts).view_as(x)

    def _apply_experts(self, x_AM: Tensor, kept_E: Tensor, kept: list[int] | None = None) -> Tensor:
        """Outputs of the experts of all ranks for rows grouped by expert; `kept` is `kept_E`."""
        kept = kept_E.tolist() if kept is None else kept
        if self.group is None:
            return self.experts(x_AM, kept)
        exchange: Any = plan_exchange(kept_E, kept, self.group)
        if self.wrap_exchange is not None:
            exchange = self.wrap_exchange(exchange)
        y_RM = self.experts(exchange.dispatch(x_AM), exchange.kept)
        return exchange.combine(y_RM)


def _expert_list(experts: nn.Module) -> ExpertList:
    return ExpertList(experts if isinstance(experts, nn.ModuleList) else [experts])

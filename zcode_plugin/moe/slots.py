"""Gates that speak fairscale's language: dense weights over tokens, experts and slots.

Such a gate returns (balance loss, combine weights [T, E, C], dispatch mask [T, E, C]). Slot c of
expert e gets the sum of the tokens that the mask puts there; a token gets the weighted sum of the
slots that its combine weights name. Only entries that are not zero cost anything here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# From rows [R, M], grouped by expert, and the number of rows of each expert [E] to their outputs.
ExpertCall = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Entries:
    """Entries of a [T, E, C] tensor that are not zero.

    Attributes:
        token_N: int64 [N].
        row_N: int64 [N], the row of the entry's slot among those in use.
        value_N: [N], with gradient.
    """

    token_N: Tensor
    row_N: Tensor
    value_N: Tensor


def apply_slots(
    x_TM: Tensor, combine_TEC: Tensor, dispatch_TEC: Tensor, experts: ExpertCall
) -> Tensor:
    """Output [T, M] of the experts for a dense routing, as fairscale's `MOELayer` defines it.

    Args:
        x_TM: [T, M].
        combine_TEC: float [T, E, C].
        dispatch_TEC: bool or float [T, E, C].
        experts: applies the experts to rows.
    """
    tokens, num_experts, places = combine_TEC.shape
    used = ((dispatch_TEC != 0) | (combine_TEC != 0)).any(0)
    row_EC = used.flatten().cumsum(0).view(num_experts, places) - 1
    dispatch = _entries(dispatch_TEC, row_EC)
    rows_NM = x_TM.index_select(0, dispatch.token_N)
    if dispatch_TEC.dtype != torch.bool:
        rows_NM = rows_NM * dispatch.value_N.to(x_TM.dtype).unsqueeze(1)
    input_RM = x_TM.new_zeros(int(used.sum()), x_TM.size(1))
    input_RM = input_RM.index_add(0, dispatch.row_N, rows_NM)
    output_RM = experts(input_RM, used.sum(1))
    combine = _entries(combine_TEC, row_EC)
    parts_NM = output_RM.index_select(0, combine.row_N)
    parts_NM = parts_NM * combine.value_N.to(parts_NM.dtype).unsqueeze(1)
    return parts_NM.new_zeros(tokens, parts_NM.size(1)).index_add(0, combine.token_N, parts_NM)


def _entries(weight_TEC: Tensor, row_EC: Tensor) -> _Entries:
    token_N, expert_N, place_N = weight_TEC.nonzero(as_tuple=True)
    value_N = weight_TEC[token_N, expert_N, place_N]
    return _Entries(token_N, row_EC[expert_N, place_N], value_N)

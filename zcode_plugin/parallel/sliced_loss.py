"""Cross-entropy over scores of which every tensor rank has those of its own symbols.

No rank holds the scores of all symbols: three numbers a target are summed over the tensor ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import get_model_parallel_group
from fairscale.nn.model_parallel.mappings import reduce_from_model_parallel_region
from torch import Tensor


def sliced_label_smoothed_nll_loss(
    scores_NV: Tensor,
    target_N: Tensor,
    epsilon: float,
    *,
    ignore_index: int,
    first: int,
    num_symbols: int,
) -> tuple[Tensor, Tensor]:
    """The sums that fairseq's `label_smoothed_nll_loss` gives for whole rows.

    Args:
        scores_NV: [N, own symbols], before any softmax; as many symbols as this rank has, or none.
        target_N: int64 [N], over all symbols; the same on all tensor ranks.
        epsilon: of label smoothing.
        ignore_index: the target that is none.
        first: number of the first of this rank's symbols.
        num_symbols: of all ranks.

    Returns:
        The loss with label smoothing and without; the same on all tensor ranks.
    """
    scores_NV = scores_NV.float()
    top_N = scores_NV.detach().new_full(target_N.shape, -torch.inf)
    if scores_NV.size(1):
        top_N = scores_NV.detach().amax(1)
    dist.all_reduce(top_N, dist.ReduceOp.MAX, group=get_model_parallel_group())
    own_N = target_N - first
    is_own_N = (own_N >= 0) & (own_N < scores_NV.size(1))
    place_N1 = own_N.where(is_own_N, own_N.new_zeros(())).unsqueeze(1)
    told_N = scores_NV.new_zeros(target_N.shape)
    if scores_NV.size(1):
        told_N = scores_NV.gather(1, place_N1).squeeze(1) * is_own_N
    sums_3N = torch.stack(((scores_NV - top_N.unsqueeze(1)).exp().sum(1), told_N, scores_NV.sum(1)))
    total_N, told_N, sum_N = reduce_from_model_parallel_region(sums_3N).unbind()
    log_total_N = total_N.log() + top_N
    is_target_N = target_N.ne(ignore_index)
    nll = ((log_total_N - told_N) * is_target_N).sum()
    smooth = ((num_symbols * log_total_N - sum_N) * is_target_N).sum()
    share = epsilon / (num_symbols - 1)
    return (1.0 - epsilon - share) * nll + share * smooth, nll

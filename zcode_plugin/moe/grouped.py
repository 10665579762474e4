"""Linear maps of several experts in one kernel, over rows that are grouped by expert."""

from __future__ import annotations

import torch
from torch import Tensor

_WITH_KERNEL = (9, 10)  # major compute capabilities
_MOST_GROUPS = 1024


def can_use_grouped_mm(x_AI: Tensor, *weights_LOI: Tensor) -> bool:
    """Whether torch has one kernel for these: bf16 on Hopper and Blackwell, whole 16-byte rows.

    On other GPUs torch multiplies one expert after the other, and waits for the GPU before.
    """
    return (
        hasattr(torch.nn.functional, "grouped_mm")
        and x_AI.is_cuda
        and x_AI.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(x_AI.device)[0] in _WITH_KERNEL
        and all(
            weight.size(0) < _MOST_GROUPS
            and weight.dtype == x_AI.dtype
            and weight.size(1) % 8 == 0
            and weight.size(2) % 8 == 0
            for weight in weights_LOI
        )
    )


def grouped_linear(
    x_AI: Tensor, weight_LOI: Tensor, bias_LO: Tensor | None, kept_L: Tensor
) -> Tensor:
    """y = x @ weight[e].T + bias[e] for the rows of each expert e.

    Args:
        x_AI: [A, I], the rows of expert 0 first, then those of expert 1, and so on.
        weight_LOI: [L, O, I].
        bias_LO: [L, O] or None.
        kept_L: int64 [L] on x's device, rows of each expert; sums to A.

    Returns:
        [A, O] of x's dtype.
    """
    ends_L = kept_L.cumsum(0).to(torch.int32)
    y_AO = torch.nn.functional.grouped_mm(x_AI, weight_LOI.transpose(1, 2), offs=ends_L)
    return y_AO if bias_LO is None else add_biases(y_AO, bias_LO, kept_L)


def add_biases(y_AO: Tensor, bias_LO: Tensor, kept_L: Tensor) -> Tensor:
    """To each row the bias of its expert; see `grouped_linear`."""
    expert_A = torch.repeat_interleave(kept_L, output_size=y_AO.size(0))
    # Not bias_LO[expert_A]: its gradient adds the rows of an expert one after the other on a GPU.
    return y_AO + torch.nn.functional.embedding(expert_A, bias_LO)


def counts_on(device: torch.device, kept: list[int]) -> Tensor:
    """int64 [L]; the host does not wait for a GPU."""
    if device.type == "cpu":
        return torch.tensor(kept)
    return torch.tensor(kept, pin_memory=True).to(device, non_blocking=True)

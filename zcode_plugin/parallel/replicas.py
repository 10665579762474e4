"""Finds replicas that drifted apart: ranks that should hold the same weights, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zcode_plugin.parallel.faults import RankError
from zcode_plugin.parallel.tensor import is_sliced
from zcode_plugin.parallel.topology import ExpertTopology, world_size

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20  # elements whose 64-bit copies are in memory at a time
_SHOWN = 3


def checksum(tensor: Tensor) -> Tensor:
    """int64 scalar that changes with any bit of the tensor, and with the order of its elements."""
    bits = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, part in enumerate(bits.split(_CHUNK)):
        # Odd factors keep every bit; sums wrap around, which loses nothing either.
        factors = torch.arange(part.numel(), device=tensor.device) + number * _CHUNK
        total += ((2 * factors + 1) * part.long()).sum()
    return total


def check_replicas(
    model: nn.Module, topology: ExpertTopology, updates: int, tensor_parallel: int = 1
) -> None:
    """Compare the weights of ranks that hold the same ones; all ranks must call it.

    Experts are compared over their expert-data group, all else over the world, slices over the
    ranks that hold the same: one all-gather of 8 bytes for each parameter and rank.

    Args:
        model: possibly wrapped for data parallelism.
        topology: of the model's experts.
        updates: number of updates done, for the message.
        tensor_parallel: T, ranks of a tensor group.

    Raises:
        RankError: some differ; all ranks raise it, with the names of ranks and parameters.
    """
    world = world_size()
    if world == 1:
        return
    names, tensors = zip(*_weights(model), strict=True)
    sums_N = torch.stack([checksum(weight) for weight in tensors])
    gathered = [torch.empty_like(sums_N) for _ in range(world)]
    dist.all_gather(gathered, sums_N)
    sums_WN = torch.stack(gathered).cpu()
    is_expert_N = torch.tensor([hasattr(weight, "expert") for weight in tensors])
    is_sliced_N = torch.tensor([is_sliced(weight) for weight in tensors])
    rank_W1 = torch.arange(world).unsqueeze(1)
    place_W1, part_W1 = rank_W1 // tensor_parallel, rank_W1 % tensor_parallel
    twin_WN = place_W1 % topology.size * is_expert_N * tensor_parallel + part_W1 * is_sliced_N
    differing = (sums_WN != sums_WN.gather(0, twin_WN)).nonzero().tolist()
    if not differing:
        return
    found = [
        f"{names[place]} of rank {rank} is not that of rank {int(twin_WN[rank, place])}"
        for rank, place in differing
    ]
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise RankError(
        f"--check-replicas: ranks have drifted apart after {updates} updates: "
        f"{'; '.join(found[:_SHOWN])}{more}: resume from a checkpoint before that"
    )


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by the name they have without wrappers; each tensor once."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        while name.startswith("module."):
            name = name.removeprefix("module.")
        # fairseq's sinusoidal positions own a buffer that nothing ever sets.
        if not name.endswith("_float_tensor"):
            yield name, tensor

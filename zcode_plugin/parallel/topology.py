"""Which ranks share the experts of a layer, and which hold the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from zcode_plugin.errors import UserError


@dataclass(frozen=True)
class ExpertTopology:
    """The place of this rank in expert parallelism.

    The world is a grid: expert groups are P consecutive ranks that together hold every expert
    once; an expert-data group joins the ranks of the same place in every expert group, which hold
    the same experts and see different data.

    Attributes:
        size: P, ranks of an expert group.
        rank: place of this rank in its expert group.
        group: the expert group; None when P is 1.
        data_size: ranks that hold the same experts.
        data_group: those ranks; None when there is only this one.
    """

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    data_size: int = 1
    data_group: dist.ProcessGroup | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> ExpertTopology:
        return self  # process groups are of the process, they cannot be copied

    @property
    def world_size(self) -> int:
        return self.size * self.data_size

    def local_experts(self, num_experts: int) -> range:
        """Global numbers of the experts that live on this rank."""
        check_sizes(self.size, self.world_size, [num_experts])
        local = num_experts // self.size
        return range(self.rank * local, (self.rank + 1) * local)


def check_sizes(size: int, world: int, experts: Iterable[int]) -> None:
    """Refuse an expert group that does not fit.

    Args:
        size: P, `--expert-parallel-size`.
        world: number of ranks.
        experts: number of experts of each MoE layer.

    Raises:
        UserError: P does not divide the world and the number of experts of every layer.
    """
    counts = sorted(set(experts))
    if size < 1 or world % size or any(count % size for count in counts):
        raise UserError(
            f"--expert-parallel-size {size} must divide the world size {world} and "
            f"--moe-expert-count {','.join(map(str, counts)) or '(no MoE layer)'}: choose a "
            "common divisor, or other numbers of ranks and experts"
        )


def expert_topology(
    size: int, experts: Iterable[int] = (), tensor_parallel: int = 1
) -> ExpertTopology:
    """The topology of this process for `--expert-parallel-size`; all ranks must call it alike.

    Without an initialised process group, as in `fairseq-generate`, one process holds all experts
    whatever `size` says. The groups wait as long for their ranks as the default group does.

    Args:
        size: P.
        experts: number of experts of each MoE layer.
        tensor_parallel: T, `--model-parallel-size`. The grid is then that of the ranks that hold
            the same slice, every T-th one; "world" is their number.

    Raises:
        UserError: see `check_sizes`.
    """
    if world_size() == 1:
        return ExpertTopology()
    check_sizes(size, dist.get_world_size() // tensor_parallel, experts)
    return _distributed_topology(size, dist.get_world_size(), dist.get_rank(), tensor_parallel)


@cache
def _distributed_topology(size: int, world: int, rank: int, tensor_parallel: int) -> ExpertTopology:
    if size == 1 and tensor_parallel == 1:
        return ExpertTopology(data_size=world, data_group=dist.group.WORLD)
    place = rank // tensor_parallel
    data_size = world // tensor_parallel // size
    group = _own_group(
        rank,
        [
            range(
                (number * size) * tensor_parallel + slice_,
                (number + 1) * size * tensor_parallel,
                tensor_parallel,
            )
            for slice_ in range(tensor_parallel)
            for number in range(data_size)
        ],
    )
    data_group = _own_group(
        rank,
        [
            range(offset * tensor_parallel + slice_, world, size * tensor_parallel)
            for slice_ in range(tensor_parallel)
            for offset in range(size)
        ],
    )
    return ExpertTopology(
        size=size,
        rank=place % size,
        group=group,
        data_size=data_size,
        data_group=data_group,
    )


def _own_group(rank: int, members: list[range]) -> dist.ProcessGroup | None:
    """The group of this rank; None where groups are of one rank. All ranks make all groups."""
    if len(members[0]) == 1:
        return None
    groups = _new_groups(members)
    [own] = [group for group, ranks in zip(groups, members, strict=True) if rank in ranks]
    return own


def _new_groups(members: Iterable[Iterable[int]]) -> list[dist.ProcessGroup]:
    timeout = current_timeout()
    return [dist.new_group(list(ranks), timeout=timeout) for ranks in members]


def world_size() -> int:
    """Ranks of this run; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def collective_device() -> torch.device:
    """Where the default group takes tensors from: NCCL knows those on GPUs alone."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def current_timeout() -> timedelta:
    """How long collectives of the default group wait for a rank."""
    default = distributed_c10d._get_default_group()
    device = default._device_types[0]
    return default._get_backend(device).options._timeout

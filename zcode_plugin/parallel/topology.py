"""Which ranks share the experts of a layer, and which hold the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch.distributed as dist

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
        if num_experts % self.size:
            raise UserError(
                f"--expert-parallel-size {self.size} does not divide --moe-expert-count "
                f"{num_experts} (world size {self.world_size}): choose a size that divides both"
            )
        local = num_experts // self.size
        return range(self.rank * local, (self.rank + 1) * local)


def expert_topology(size: int) -> ExpertTopology:
    """The topology of this process for `--expert-parallel-size`; all ranks must call it alike.

    Without an initialised process group, as in `fairseq-generate`, one process holds all experts
    whatever `size` says.

    Raises:
        UserError: the size does not divide the world.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ExpertTopology()
    return _distributed_topology(size, dist.get_world_size(), dist.get_rank())


@cache
def _distributed_topology(size: int, world: int, rank: int) -> ExpertTopology:
    if size < 1 or world % size:
        raise UserError(
            f"--expert-parallel-size {size} does not divide the world size {world}: "
            f"choose a divisor of {world}"
        )
    if size == 1:
        return ExpertTopology(data_size=world, data_group=dist.group.WORLD)
    groups = [dist.new_group(list(range(start, start + size))) for start in range(0, world, size)]
    data_size = world // size
    data_groups = (
        [dist.new_group(list(range(place, world, size))) for place in range(size)]
        if data_size > 1
        else None
    )
    return ExpertTopology(
        size=size,
        rank=rank % size,
        group=groups[rank // size],
        data_size=data_size,
        data_group=data_groups[rank % size] if data_groups else None,
    )

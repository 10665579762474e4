"""How a run is spread over ranks, and so which files its checkpoints have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config, names
from zcode_plugin.parallel.tensor import TensorSlicing
from zcode_plugin.parallel.topology import ExpertTopology


@dataclass(frozen=True)
class Layout:
    """How a run is spread.

    Attributes:
        world: ranks.
        expert_parallel: P, ranks over which the experts are spread (`--expert-parallel-size`).
        tensor_parallel: T, ranks over which each layer is sliced (`--model-parallel-size`).
        sharded: whether each file holds a part of the optimizer's state (`--zero-sharding os`).
    """

    world: int
    expert_parallel: int = 1
    tensor_parallel: int = 1
    sharded: bool = False

    @classmethod
    def of_run(cls, options: Any, world: int) -> Layout:
        """That of a run with these options."""
        if world == 1:
            return cls(1)
        sizes = ("expert_parallel_size", "model_parallel_size")
        return cls(world, *(config.get(options, name, 1) for name in sizes))

    @classmethod
    def of_checkpoint(cls, state: Mapping[str, Any], sharded: bool = False) -> Layout:
        """That of the run that saved a checkpoint."""
        return cls(
            config.world_size(state),
            config.expert_parallel_size(state),
            config.model_parallel_size(state),
            sharded,
        )

    @property
    def data(self) -> int:
        """Ranks that see different data, W / T."""
        return self.world // self.tensor_parallel

    @property
    def files(self) -> int:
        """One for each rank when ranks hold different experts, else one for each slice."""
        return self.world if self.expert_parallel > 1 else self.tensor_parallel

    def path(self, whole: Path, rank: int) -> Path:
        """The file of a rank, where `whole` is the name without one."""
        if self.expert_parallel > 1:
            return names.with_rank(whole, rank)
        return names.with_part(whole, rank) if self.tensor_parallel > 1 else whole

    def paths(self, whole: Path) -> list[Path]:
        """All files of a checkpoint, in the order of their ranks."""
        return [self.path(whole, rank) for rank in range(self.files)]

    def shards(self, whole: Path) -> list[Path]:
        """All files of a run with `--use-sharded-state`, in the order of their ranks."""
        return [
            names.with_shard(self.path(whole, rank) if self.expert_parallel > 1 else whole, rank)
            for rank in range(self.world)
        ]

    def slicing(self, rank: int) -> TensorSlicing:
        """Which slices a rank holds."""
        return TensorSlicing(self.tensor_parallel, rank % self.tensor_parallel)

    def topology(self, rank: int) -> ExpertTopology:
        """Which experts a rank holds."""
        place = rank // self.tensor_parallel
        return ExpertTopology(
            self.expert_parallel,
            place % self.expert_parallel,
            None,
            self.data // self.expert_parallel,
        )

    @property
    def flags(self) -> str:
        """Those of training that give ranks files of their own."""
        experts = f"--expert-parallel-size {self.expert_parallel}"
        if self.tensor_parallel == 1:
            return experts
        sliced = f"--model-parallel-size {self.tensor_parallel}"
        return f"{experts} and {sliced}" if self.expert_parallel > 1 else sliced

    def reshard(self, path: Path) -> str:
        """The `zcode reshard` that makes files of this layout of any others."""
        sliced = (
            f" --model-parallel-size {self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        )
        return (
            f"zcode reshard {path} --ranks {self.world} "
            f"--expert-parallel-size {self.expert_parallel}{sliced} --out DIR"
        )

"""Merges the files of all ranks of an expert-parallel run into one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcode_plugin.checkpoint import config
from zcode_plugin.checkpoint.gather import gather_for_one_process
from zcode_plugin.checkpoint.tensors import count_elements


@dataclass(frozen=True)
class MergeReport:
    """What was merged.

    Args:
        ranks: files read.
        updates: updates done at the time of the checkpoint.
        experts: number of experts of each MoE layer.
        parameters: elements of all weights; those that entries share are counted once.
    """

    ranks: int
    updates: int
    experts: dict[str, int]
    parameters: int


def merge(files: Mapping[int, Path]) -> tuple[dict[str, Any], MergeReport]:
    """Merge rank files, or the shards of `--use-sharded-state`.

    The optimizer's state is left out: one process translates without it. `reshard` keeps it.

    Args:
        files: paths by rank, as `names.find_rank_files` or `find_shards` gives them.

    Returns:
        A checkpoint that loads in one process, and what it was made of.

    Raises:
        UserError: as `gather`.
    """
    gathered = gather_for_one_process(list(files.values()))
    merged, experts = gathered.state, gathered.experts
    return merged, MergeReport(
        ranks=len(files),
        updates=config.num_updates(merged),
        experts=experts,
        parameters=count_elements(merged["model"].values()),
    )

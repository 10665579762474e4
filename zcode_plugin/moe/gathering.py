"""Gathers all experts on every rank while validation decodes.

Ranks translate different sentences, which take different numbers of steps, and every step of an
expert-parallel layer needs all ranks: step by step, no rank can wait for the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch.distributed as dist
from torch import nn

from zcode_plugin.moe.expert_list import ExpertList
from zcode_plugin.moe.expert_stacks import ExpertStacks
from zcode_plugin.moe.experts import Experts
from zcode_plugin.moe.layer import MOELayer


def gather_experts(model: nn.Module) -> dict[str, Experts]:
    """Copies of all experts of the layers that hold only some; all ranks must call it.

    Returns:
        The experts by the name of their layer; empty when nothing is spread over ranks.
    """
    return {
        name: cast(Experts, layer.experts).gather(layer.group)
        for name, layer in model.named_modules()
        if isinstance(layer, MOELayer) and layer.group is not None
    }


@contextmanager
def standing_in(model: nn.Module, gathered: Mapping[str, Experts]) -> Iterator[None]:
    """Within the block the layers use gathered experts, and no other rank."""
    own: list[tuple[MOELayer, ExpertStacks | ExpertList, dist.ProcessGroup | None]] = []
    try:
        for name, experts in gathered.items():
            layer: MOELayer = cast(MOELayer, model.get_submodule(name))
            own.append((layer, layer.experts, layer.group))
            layer.experts, layer.group = experts.train(layer.training), None
        yield
    finally:
        for layer, former, group in own:
            layer.experts, layer.group = former, group

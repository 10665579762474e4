"""Gathered experts stand in for those of other ranks, for as long as they are asked to."""

from __future__ import annotations

import torch
from distributed import run_ranks
from torch import nn

from zcode_plugin.moe import Experts, MOELayer, TopKGate
from zcode_plugin.moe.gathering import gather_experts, standing_in


def _layer(rank: int, world: int) -> MOELayer:
    torch.manual_seed(1)
    experts = Experts(8, 16, 4 // world, first=rank * 4 // world)
    return MOELayer(TopKGate(8, 4), experts, torch.distributed.group.WORLD)


def _outputs(rank: int) -> list[bool]:
    model = nn.ModuleDict({"dense": nn.Linear(8, 8), "moe": _layer(rank, 2)}).eval()
    layer = model["moe"]
    own, group = layer.experts, layer.group
    x = torch.randn(5 + rank, 8)
    with torch.no_grad():
        together = layer(x)
        gathered = gather_experts(model)
        with standing_in(model, gathered):
            # Different numbers of calls: nobody waits for anybody.
            for _ in range(1 + 3 * rank):
                alone = layer(x)
            whole = dict(model.named_parameters())
        again = layer(x)
    stacked = whole["moe.experts.fc1_weight"]
    mine = own.fc1_weight
    return [
        list(gathered) == ["moe"],
        torch.allclose(alone, together, atol=1e-6),
        torch.equal(again, together),
        layer.experts is own and layer.group is group,
        stacked.shape == (4, 16, 8) and torch.equal(stacked[2 * rank : 2 * rank + 2], mine),
        not stacked.requires_grad and mine.requires_grad,
    ]


def test_ranks_compute_alone_what_they_compute_together() -> None:
    assert run_ranks(_outputs, 2) == [[True] * 6] * 2


def _error(rank: int) -> bool:
    model = nn.ModuleDict({"moe": _layer(rank, 2)})
    own = model["moe"].experts
    try:
        with standing_in(model, gather_experts(model)):
            raise ValueError
    except ValueError:
        return model["moe"].experts is own


def test_an_error_leaves_the_layer_as_it_was() -> None:
    assert run_ranks(_error, 2) == [True, True]


def test_nothing_is_gathered_in_one_process() -> None:
    layer = MOELayer(TopKGate(8, 4), Experts(8, 16, 4))
    assert gather_experts(nn.ModuleDict({"moe": layer})) == {}

"""Our layer in the place of fairscale's, on the same gates and experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed import run_ranks
from fairscale.nn import MOELayer as FairscaleMOELayer
from fairscale.nn import Top2Gate
from torch import Tensor, nn

from zcode_plugin.moe import MOELayer

M, F = 6, 10
WORLDS = (1, 2, 4)


class SkewedGate(nn.Module):
    """Tokens share slots, weights are real numbers, some slots are read and never written."""

    def __init__(self, num_experts: int, places: int = 3, mask: str = "bool"):
        super().__init__()
        self.num_experts, self.places, self.mask = num_experts, places, mask
        self.wg = nn.Linear(M, num_experts * places)

    def forward(self, x_TM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (x_TM.size(0), self.num_experts, self.places)
        score_TEC = self.wg(x_TM).view(shape)
        combine_TEC = score_TEC * (score_TEC > 0.2)
        dispatch_TEC = score_TEC * (score_TEC > 0.4)
        loss = score_TEC.square().mean()
        return loss, combine_TEC, dispatch_TEC if self.mask == "float" else dispatch_TEC.bool()


class RoundRobinGate(nn.Module):
    """Token t goes to expert t % E; no parameters, and a plain number as loss."""

    def __init__(self, num_experts: int):
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x_TM: Tensor) -> tuple[float, Tensor, Tensor]:
        tokens = x_TM.size(0)
        combine_TEC = x_TM.new_zeros(tokens, self.num_experts, tokens)
        token_T = torch.arange(tokens)
        combine_TEC[token_T, token_T % self.num_experts, token_T // self.num_experts] = 1
        return 0.0, combine_TEC, combine_TEC.bool()


GATES = {
    "top 2": lambda experts: Top2Gate(M, experts),
    "shared slots": lambda experts: SkewedGate(experts),
    "a mask of real numbers": lambda experts: SkewedGate(experts, mask="float"),
    "round robin": lambda experts: RoundRobinGate(experts),
}


def _experts(rank: int, local: int) -> nn.ModuleList:
    torch.manual_seed(100 + rank)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(M, F), nn.GELU(), nn.Linear(F, M)) for _ in range(local)
    )


def _run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, balance loss, and the gradients of input and parameters, by name."""
    torch.manual_seed(9)  # Top2Gate draws its second expert
    x = x.clone().requires_grad_()
    output = layer(x)
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    ((output * weight).sum() + layer.l_aux).backward()
    named = sorted(layer.named_parameters())
    assert x.grad is not None
    assert all(hasattr(parameter, "expert") == ("experts." in name) for name, parameter in named)
    loss = torch.as_tensor(layer.l_aux).detach()
    grads = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for _, parameter in named
    ]
    return [output.detach(), loss, x.grad, *grads]


def _both(rank: int, world: int, name: str, local: int) -> list[list[Tensor]]:
    results = []
    for kind in (FairscaleMOELayer, MOELayer):
        torch.manual_seed(0)
        gate = GATES[name](world * local)
        layer = kind(gate, _experts(rank, local))
        torch.manual_seed(200 + rank)
        results.append(_run(layer, torch.randn(4, 6, M)))
    return results


@pytest.mark.parametrize("local", [1, 2])
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", GATES)
def test_outputs_and_gradients_are_theirs(name: str, world: int, local: int) -> None:
    for theirs, ours in run_ranks(_both, world, world, name, local):
        assert len(theirs) == len(ours)
        assert theirs[0].abs().sum() > 0
        for wanted, actual in zip(theirs, ours, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


def _whole_world(rank: int) -> tuple[list[bool], list[str], list[str]]:
    torch.manual_seed(0)
    ours = MOELayer(Top2Gate(M, 2), nn.Linear(M, M))
    torch.manual_seed(0)
    theirs = FairscaleMOELayer(Top2Gate(M, 2), nn.Linear(M, M), dist.group.WORLD)
    same = [
        isinstance(ours, FairscaleMOELayer),
        ours.world_size == theirs.world_size == 2,
        ours.num_local_experts == theirs.num_local_experts == 1,
    ]
    return same, sorted(ours.state_dict()), sorted(theirs.state_dict())


def test_one_module_without_a_group_is_an_expert_of_the_whole_world() -> None:
    for same, ours, theirs in run_ranks(_whole_world, 2):
        assert same == [True, True, True]
        assert ours == theirs


def test_no_process_group_is_needed_for_one_rank() -> None:
    layer = MOELayer(RoundRobinGate(2), nn.ModuleList([nn.Identity(), nn.Linear(M, M)]))
    x = torch.randn(2, 4, M)
    output = layer(x)
    assert torch.equal(output.view(-1, M)[::2], x.view(-1, M)[::2])
    torch.testing.assert_close(output.view(-1, M)[1::2], layer.experts[1](x.view(-1, M)[1::2]))


def test_a_gate_for_another_number_of_experts_is_refused() -> None:
    gate = Top2Gate(M, 3)
    with pytest.raises(ValueError, match="knows 3 experts, but 1 ranks hold 2 each"):
        MOELayer(gate, nn.ModuleList([nn.Identity(), nn.Identity()]))(torch.randn(3, 2, M))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    # Theirs multiplies a float32 mask with the input and fails here.
    torch.manual_seed(0)
    layer: Any = MOELayer(RoundRobinGate(2), _experts(0, 2))
    x = torch.randn(2, 4, M)
    expected = layer(x)
    actual = layer.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, atol=0.02, rtol=0.05)

"""Loss-free balancing: by hand, on ranks, and under the rhythm of real fairseq optimizers."""

from __future__ import annotations

import pytest
import torch
from distributed import run_ranks
from optimizers import half_sgd, sgd
from torch import Tensor

from zcode_plugin.moe import GateOptions, LayerStats, TopKGate
from zcode_plugin.parallel.balancing import LoadBalancer, follow_optimizer


def gate(num_experts: int) -> TopKGate:
    return TopKGate(4, num_experts, GateOptions(selection_bias=True))


def packed(load: list[int]) -> Tensor:
    zero = torch.zeros(())
    return LayerStats(zero, zero, zero, zero, zero, torch.tensor(load)).pack()


def biases(balancer: LoadBalancer) -> dict[str, list[float]]:
    return {name: item.selection_bias.tolist() for name, item in balancer.gates.items()}


def test_update_by_hand() -> None:
    balancer = LoadBalancer({"a": gate(3), "b": gate(2)}, rate=0.25)
    balancer.observe({"a": packed([5, 3, 1]), "b": packed([0, 2])})
    balancer.observe({"a": packed([0, 3, 0])})
    balancer.update()
    # Layer a: loads 5, 6, 1, mean 4.
    assert biases(balancer) == {"a": [-0.25, -0.25, 0.25], "b": [0.25, -0.25]}
    balancer.update()  # nothing was seen since
    assert biases(balancer) == {"a": [-0.25, -0.25, 0.25], "b": [0.25, -0.25]}
    balancer.observe({"b": packed([4, 4])})
    balancer.update()
    assert biases(balancer)["b"] == [0.25, -0.25]


def test_batches_that_do_not_count() -> None:
    balancer = LoadBalancer({"a": gate(2)}, rate=0.25)
    balancer.counting = False
    balancer.observe({"a": packed([5, 1])})
    balancer.update()
    assert biases(balancer) == {"a": [0, 0]}


def _rank_updates(rank: int) -> dict[str, list[float]]:
    balancer = LoadBalancer({"a": gate(3), "b": gate(2)}, rate=0.5)
    balancer.observe(
        {"a": packed([[9, 0, 0], [0, 1, 5]][rank]), "b": packed([[3, 1], [1, 3]][rank])}
    )
    balancer.update()
    return biases(balancer)


def test_loads_are_summed_over_ranks() -> None:
    # Layer a: 9, 1, 5, mean 5; layer b: 4, 4.
    expected = {"a": [-0.5, 0.5, 0.0], "b": [0.0, 0.0]}
    assert run_ranks(_rank_updates, 2) == [expected, expected]


@pytest.mark.parametrize("fp16", [False, True])
def test_loads_live_as_long_as_gradients(fp16: bool) -> None:
    layer = gate(2)
    if fp16:
        layer.half()
    stock = (half_sgd if fp16 else sgd)(layer.parameters())
    balancer = LoadBalancer({"a": layer}, rate=0.25)
    follow_optimizer(balancer, stock)
    follow_optimizer(balancer, stock)  # a second call changes nothing
    layer.wg.weight.grad = torch.zeros_like(layer.wg.weight)

    balancer.observe({"a": packed([9, 1])})
    stock.zero_grad()  # as after an overflow: this batch is forgotten
    balancer.observe({"a": packed([1, 3])})
    layer.wg.weight.grad = torch.zeros_like(layer.wg.weight)
    stock.clip_grad_norm(0.0)
    stock.step()
    assert biases(balancer) == {"a": [0.25, -0.25]}


def test_an_overflow_moves_nothing() -> None:
    layer = gate(2).half()
    stock = half_sgd(layer.parameters())
    balancer = LoadBalancer({"a": layer}, rate=0.25)
    follow_optimizer(balancer, stock)
    stock.zero_grad()
    balancer.observe({"a": packed([9, 1])})
    stock.backward(layer.wg.weight.float().sum() * 1e30)
    with pytest.raises(OverflowError):
        stock.clip_grad_norm(1.0)
    stock.zero_grad()
    balancer.update()
    assert biases(balancer) == {"a": [0, 0]}


def test_the_bias_balances_a_lopsided_gate() -> None:
    torch.manual_seed(0)
    layer = TopKGate(16, 8, GateOptions(selection_bias=True, capacity_factor=0))
    with torch.no_grad():
        # Inputs have mean 1: this gate prefers some experts for all of them.
        layer.wg.weight.normal_(std=0.2)
    balancer = LoadBalancer({"a": layer}, rate=0.003)

    def busiest() -> float:
        """Load of the busiest expert over the mean load."""
        load_E = layer(torch.randn(2048, 16) + 1).stats.load_E
        balancer.observe({"a": packed(load_E.tolist())})
        return float(load_E.max()) * 8 / 2048

    assert busiest() > 4
    for _ in range(200):
        balancer.update()
        busiest()
    assert busiest() < 1.3

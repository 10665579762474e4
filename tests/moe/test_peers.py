"""The numbers of DeepSpeed's and fairscale's gates, where the definitions agree.

They differ elsewhere: DeepSpeed's top-k with capacity ranks all choices of an expert together, ours
puts first choices before second ones; its load in the balance loss counts all k choices, ours the
first; with padding it divides by all tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairscale.nn.moe.top2gate import top2gating
from torch import Tensor, nn

from zcode_plugin.moe import Experts, GateOptions, MOELayer, ResidualExpert, Routing, TopKGate
from zcode_plugin.moe.losses import balance_loss
from zcode_plugin.moe.routing import capacity, route

SHAPES = [(64, 4, 1.0), (96, 8, 0.5), (100, 7, 1.25), (33, 16, 1.0)]


@pytest.fixture(scope="module")
def sharded_moe() -> Any:
    return pytest.importorskip(
        "deepspeed.moe.sharded_moe", reason="deepspeed is not installed: pip install .[bench]"
    )


def logits(tokens: int, experts: int) -> Tensor:
    return 2 * torch.randn(tokens, experts, generator=torch.Generator().manual_seed(tokens + 1))


def kept(routing: Routing, tokens: int) -> Tensor:
    """bool [T, E]."""
    expert_A = torch.arange(routing.kept_E.numel()).repeat_interleave(routing.kept_E)
    table = torch.zeros(tokens, routing.kept_E.numel(), dtype=torch.bool)
    table[routing.token_A, expert_A] = True
    return table


def gate_for(logits_TE: Tensor, **options: Any) -> tuple[TopKGate, Tensor]:
    """A gate and an input that give these logits."""
    tokens, experts = logits_TE.shape
    gate = TopKGate(tokens, experts, GateOptions(min_capacity=1, **options))
    with torch.no_grad():
        gate.wg.weight.copy_(logits_TE.t())
    return gate, torch.eye(tokens)


def weight_table(gate: TopKGate, x_TM: Tensor) -> tuple[Tensor, Tensor]:
    """Combine weights [T, E] and the balance loss."""
    output = gate(x_TM)
    expert_A = torch.arange(gate.num_experts).repeat_interleave(output.routing.kept_E)
    table = torch.zeros(x_TM.size(0), gate.num_experts)
    return table.index_put((output.routing.token_A, expert_A), output.weight_A), (
        output.stats.balance_loss
    )


@pytest.mark.parametrize(("tokens", "experts", "factor"), SHAPES)
def test_capacity_is_deepspeeds(sharded_moe: Any, tokens: int, experts: int, factor: float) -> None:
    for k in (1, 2):
        theirs = sharded_moe._capacity(
            torch.empty(tokens, experts), torch.tensor(k * factor), torch.tensor(4)
        )
        assert capacity(tokens, experts, k, factor, 4) == int(theirs)


@pytest.mark.parametrize(("tokens", "experts", "factor"), SHAPES)
def test_random_selection_keeps_deepspeeds_tokens(
    sharded_moe: Any, tokens: int, experts: int, factor: float
) -> None:
    logits_TE = logits(tokens, experts)
    torch.manual_seed(3)
    loss, combine_TEC, _, load_E = sharded_moe.top1gating(logits_TE, factor, 1)
    torch.manual_seed(3)
    draw_TE = torch.rand(tokens, experts)
    gate_TE = logits_TE.softmax(1)
    expert_T = gate_TE.argmax(1)
    routing = route(
        expert_T[None],
        experts,
        capacity(tokens, experts, 1, factor, 1),
        priority_T=draw_TE[torch.arange(tokens), expert_T],
    )
    assert torch.equal(kept(routing, tokens), combine_TEC.sum(2) > 0)
    assert int(routing.kept_E.sum()) < tokens
    assert routing.demand_E.tolist() == load_E.tolist()
    torch.testing.assert_close(balance_loss(gate_TE=gate_TE, expert_T=expert_T, keep_T=None), loss)


@pytest.mark.parametrize(("tokens", "experts", "factor"), SHAPES)
def test_top_2_by_score_is_deepspeeds(
    sharded_moe: Any, tokens: int, experts: int, factor: float
) -> None:
    logits_TE = logits(tokens, experts)
    loss, combine_TEC, _, _ = sharded_moe.top2gating(
        logits_TE, factor, 1, top2_2nd_expert_sampling=False
    )
    gate, x_TM = gate_for(logits_TE, k=2, capacity_factor=factor, token_priority="position")
    table_TE, balance = weight_table(gate, x_TM)
    torch.testing.assert_close(table_TE, combine_TEC.sum(2))
    torch.testing.assert_close(balance, loss)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(("tokens", "experts", "factor"), SHAPES)
def test_top_k_without_capacity_is_deepspeeds(
    sharded_moe: Any, tokens: int, experts: int, factor: float, k: int
) -> None:
    logits_TE = logits(tokens, experts)
    _, combine_TEC, _, _ = sharded_moe.topkgating(logits_TE, k, factor, 1, drop_tokens=False)
    gate, x_TM = gate_for(logits_TE, k=k, capacity_factor=0)
    torch.testing.assert_close(weight_table(gate, x_TM)[0], combine_TEC.sum(2))


@pytest.mark.parametrize("use_residual", [False, True])
def test_layer_is_deepspeeds(use_residual: bool) -> None:
    module = pytest.importorskip("deepspeed.moe.layer", reason="deepspeed is not installed")
    torch.manual_seed(0)
    model_dim, hidden_dim, experts = 6, 10, 4
    expert = nn.Sequential(
        nn.Linear(model_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, model_dim)
    )
    theirs = module.MoE(
        model_dim, expert, experts, k=1, drop_tokens=False, use_residual=use_residual
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    state = {}
    sources = {"gate.wg.weight": theirs.deepspeed_moe.gate.wg.weight}
    for number, module_list in enumerate(theirs.deepspeed_moe.experts.deepspeed_experts):
        for name, layer in (("fc1", module_list[0]), ("fc2", module_list[2])):
            sources[f"experts.{number}.{name}.weight"] = layer.weight
            sources[f"experts.{number}.{name}.bias"] = layer.bias
    if use_residual:
        for name, layer in (
            ("fc1", theirs.mlp[0]), ("fc2", theirs.mlp[2]), ("coefficient", theirs.coefficient),
        ):  # fmt: skip
            sources[f"residual.{name}.weight"] = layer.weight
            sources[f"residual.{name}.bias"] = layer.bias
    state = {name: value.detach().clone() for name, value in sources.items()}
    ours = MOELayer(
        TopKGate(model_dim, experts, GateOptions(capacity_factor=0)),
        Experts(model_dim, hidden_dim, experts),
        residual=ResidualExpert(model_dim, hidden_dim) if use_residual else None,
    )
    ours.load_state_dict(state)
    x = torch.randn(3, 8, model_dim)
    output, loss, _ = theirs(x)
    torch.testing.assert_close(ours(x), output)
    torch.testing.assert_close(ours.l_aux, loss)


@pytest.mark.parametrize(("tokens", "experts"), [(64, 4), (96, 8)])
def test_top_2_with_the_same_draws_is_fairscales(tokens: int, experts: int) -> None:
    logits_TE = logits(tokens, experts)
    torch.manual_seed(5)
    loss, combine_TEC, _ = top2gating(logits_TE)
    torch.manual_seed(5)
    noise_TE = torch.distributions.Gumbel(torch.tensor(0.0), torch.tensor(1.0)).rsample(
        logits_TE.shape
    )
    gate_TE = logits_TE.softmax(1)
    first_T = gate_TE.argmax(1)
    others_TE = (logits_TE + noise_TE).scatter(1, first_T[:, None], -torch.inf)
    expert_KT = torch.stack((first_T, others_TE.argmax(1)))
    routing = route(expert_KT, experts, capacity(tokens, experts, 2, 1.0, 1))
    assert torch.equal(kept(routing, tokens), combine_TEC.sum(2) > 0)
    assert int(routing.kept_E.sum()) < 2 * tokens
    balance = balance_loss(gate_TE=gate_TE, expert_T=first_T, keep_T=None)
    torch.testing.assert_close(balance, loss * experts**2)

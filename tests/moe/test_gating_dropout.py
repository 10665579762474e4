"""Gating dropout: the same coin everywhere, and no token travels."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from distributed import run_ranks
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from zcode_plugin.moe import (
    CallContext,
    Experts,
    GateOptions,
    GatingDropout,
    LayerStats,
    MOELayer,
    TopKGate,
)
from zcode_plugin.moe.context import calling, hand_in_context
from zcode_plugin.moe.gating_dropout import GatingDropoutPolicy, deal_out

M, F, E = 6, 10, 4
CONTEXT = CallContext(layer="layer", key=(1, 0, 0))


def build(
    probability: float,
    policy: GatingDropoutPolicy = "local",
    local: int = E,
    first: int = 0,
    group: object = None,
) -> MOELayer:
    torch.manual_seed(0)
    gate = TopKGate(M, E, GateOptions(capacity_factor=0))
    experts = Experts(M, F, local, first=first)
    dropout = GatingDropout(probability, policy)
    return MOELayer(gate, experts, group, gating_dropout=dropout)  # type: ignore[arg-type]


def expert_outputs(experts: Experts, x_TM: Tensor) -> Tensor:
    """[L, T, M]: every local expert on every token."""
    tokens, local = x_TM.size(0), experts.num_local
    return experts(x_TM.repeat(local, 1), [tokens] * local).view(local, tokens, -1)


def chosen(output_TM: Tensor, outputs_LTM: Tensor) -> list[int]:
    """Which expert each token's output is."""
    distance_LT = (output_TM - outputs_LTM).abs().amax(-1)
    assert (distance_LT.amin(0) < 1e-5).all()
    return distance_LT.argmin(0).tolist()


def test_tokens_are_dealt_out_in_equal_shares() -> None:
    padding_T = torch.zeros(13, dtype=torch.bool)
    padding_T[[2, 5]] = True
    torch.manual_seed(0)
    token_A, kept = deal_out(padding_T, 3)
    assert kept == [4, 4, 3]
    assert sorted(token_A.tolist()) == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    again, _ = deal_out(padding_T, 3)
    assert token_A.tolist() != again.tolist()
    assert deal_out(torch.ones(2, dtype=torch.bool), 2)[1] == [0, 0]


def test_the_gate_is_ignored() -> None:
    layer = build(1.0)
    x_TM = torch.randn(13, M)
    output, vector = layer.forward_with_stats(x_TM, None, CONTEXT)
    by_token = chosen(output, expert_outputs(layer.experts, x_TM))
    assert sorted(by_token.count(expert) for expert in range(E)) == [3, 3, 3, 4]
    stats = LayerStats.unpack(vector)
    assert stats.tokens.item() == stats.balance_loss.item() == stats.load_E.sum().item() == 0
    output.sum().backward()
    assert layer.gate.wg.weight.grad is None
    assert layer.experts.fc1_weight.grad.abs().sum((1, 2)).gt(0).all()


def test_padding_goes_nowhere() -> None:
    layer = build(1.0)
    mask = torch.tensor([[False, True, False], [True, False, False]])
    output, _ = layer.forward_with_stats(torch.randn(2, 3, M), mask, CONTEXT)
    assert ((output == 0).all(-1) == mask).all()


def test_skipping_gives_nothing() -> None:
    output, _ = build(1.0, "skip").forward_with_stats(torch.randn(5, M), None, CONTEXT)
    assert torch.equal(output, torch.zeros(5, M))


def test_evaluation_follows_the_gate() -> None:
    x_TM = torch.randn(9, M)
    assert torch.equal(build(1.0).eval()(x_TM), build(0.0).eval()(x_TM))


def test_a_key_that_ranks_share_is_needed() -> None:
    with pytest.raises(ValueError, match="context whose key all ranks share"):
        build(0.5)(torch.randn(5, M))


def test_the_coin_is_fair_and_differs_between_layers_passes_updates_and_seeds() -> None:
    contexts = [
        CallContext(layer=layer, key=(1, update, number))
        for layer in ("encoder.layers.1", "decoder.layers.1")
        for update in range(1000)
        for number in range(2)
    ]
    sides = torch.tensor([context.coin(0.3) for context in contexts]).view(2, 1000, 2)
    # 4000 flips: deviation 0.0072.
    assert sides.float().mean().item() == pytest.approx(0.3, abs=5 * 0.0072)
    seed_2 = [replace(one, key=(2, *one.key[1:])).coin(0.3) for one in contexts]
    pairs = (
        (sides[0], sides[1]),
        (sides[..., 0], sides[..., 1]),
        (sides[0], torch.tensor(seed_2).view(2, 1000, 2)[0]),
    )
    for one, other in pairs:
        # Both heads in 9 of 100, deviation 0.0064 for 2000.
        assert (one & other).float().mean().item() == pytest.approx(0.09, abs=5 * 0.0064)


def test_another_process_sees_the_same_sides() -> None:
    code = (
        "from zcode_plugin.moe import CallContext\n"
        "print([CallContext('a', (1, update, 0)).coin(0.5) for update in range(40)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = [CallContext("a", (1, update, 0)).coin(0.5) for update in range(40)]
    assert done.stdout.strip() == str(mine)


def _tokens_stay(rank: int) -> list[int]:
    layer = build(1.0, local=2, first=2 * rank, group=torch.distributed.group.WORLD)
    x_TM = torch.randn([7, 4][rank], M)
    output, _ = layer.forward_with_stats(x_TM, None, CONTEXT)
    return chosen(output, expert_outputs(layer.experts, x_TM))


def test_no_token_leaves_its_rank() -> None:
    first, second = run_ranks(_tokens_stay, 2)
    assert sorted(first.count(expert) for expert in (0, 1)) == [3, 4]
    assert second.count(0) == second.count(1) == 2


class Block(nn.Module):
    """A layer as the model has it: stands behind a hook, passes the context on."""

    def __init__(self) -> None:
        super().__init__()
        self.moe_layer = build(0.5)

    def forward(self, x: Tensor, context: CallContext | None = None) -> tuple[Tensor, Tensor]:
        return self.moe_layer.forward_with_stats(x, None, context)


def _two_passes(recompute: bool) -> list[Tensor]:
    block: nn.Module = Block()
    if recompute:
        block = checkpoint_wrapper(block)
    hand_in_context(block, "block")
    torch.manual_seed(3)
    x_TM = torch.randn(20, M, requires_grad=True)
    total = torch.zeros(())
    for number in range(8):
        with calling(key=(1, 0, number)):
            output, _ = block(x_TM)
        total = total + (number + 1) * output.square().sum()
    total.backward()
    assert x_TM.grad is not None
    parameters = dict(block.named_parameters())
    return [x_TM.grad, *(parameters[name].grad for name in sorted(parameters))]


def test_recomputation_sees_the_coin_of_its_own_pass() -> None:
    sides = {CallContext("block", (1, 0, number)).coin(0.5) for number in range(8)}
    assert sides == {True, False}
    for plain, again in zip(_two_passes(False), _two_passes(True), strict=True):
        torch.testing.assert_close(plain, again)

"""Gates that learn nothing."""

from __future__ import annotations

import pytest
import torch

from zcode_plugin.moe import CallContext, Experts, GateOptions, HashGate, MOELayer, RandomGate
from zcode_plugin.moe.fixed_gates import hash_experts

HASHES = [4, 1, 6, 2, 7, 4, 1, 5, 2, 7, 4, 0]


def test_hash_is_fixed_for_all_time() -> None:
    # A checkpoint is worth nothing once these numbers change.
    assert hash_experts(torch.arange(12), 8, 1).squeeze(1).tolist() == HASHES
    assert hash_experts(torch.tensor([5]), 8, 3).tolist() == [
        [HASHES[5], (HASHES[5] + 1) % 8, (HASHES[5] + 2) % 8]
    ]


def test_hash_spreads_ids_evenly() -> None:
    counts = hash_experts(torch.arange(8000), 16, 1).flatten().bincount(minlength=16)
    # As many draws would deviate by 22; the hash is more even than draws.
    assert (counts - 500).abs().max() < 3 * 22


def test_the_same_token_goes_to_the_same_expert_wherever_it_stands() -> None:
    gate = HashGate(4, GateOptions(capacity_factor=0))
    ids = torch.tensor([[7, 3, 7], [3, 3, 7]])
    output = gate(torch.randn(6, 2), None, CallContext(token_ids=ids))
    by_token = torch.empty(6, dtype=torch.int64)
    by_token[output.routing.token_A] = torch.arange(4).repeat_interleave(output.routing.kept_E)
    of_7, of_3 = (int(hash_experts(torch.tensor([i]), 4, 1)) for i in (7, 3))
    assert by_token.tolist() == [of_7, of_3, of_7, of_3, of_3, of_7]
    assert output.weight_A.tolist() == [1.0] * 6


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("kind", [HashGate, RandomGate])
def test_weights_of_a_token_are_equal_and_sum_to_one(kind: type[HashGate], k: int) -> None:
    gate = kind(4, GateOptions(k=k, capacity_factor=0))
    padding_T = torch.tensor([False] * 9 + [True])
    output = gate(torch.randn(10, 2), padding_T, CallContext(token_ids=torch.arange(10)))
    assert output.weight_A.tolist() == pytest.approx([1 / k] * 9 * k)
    assert output.routing.token_A.bincount(minlength=10).tolist() == [k] * 9 + [0]
    assert output.stats.balance_loss.item() == 0
    assert output.stats.tokens.item() == 9


def test_random_experts_are_uniform_and_new_in_every_pass() -> None:
    torch.manual_seed(0)
    gate = RandomGate(4, GateOptions(capacity_factor=0))
    x_TM = torch.randn(20_000, 1)
    first, second = gate(x_TM).routing, gate(x_TM).routing
    # Binomial deviation 61.
    assert (first.kept_E - 5000).abs().max() < 5 * 61
    assert first.token_A.tolist() != second.token_A.tolist()


def test_random_gate_evaluates_by_the_hash() -> None:
    context = CallContext(token_ids=torch.arange(30))
    random, hashed = RandomGate(4).eval(), HashGate(4).eval()
    x_TM = torch.randn(30, 2)
    for _ in range(2):
        assert torch.equal(
            random(x_TM, None, context).routing.token_A, hashed(x_TM, None, context).routing.token_A
        )


def test_capacity_and_masking_act() -> None:
    options = GateOptions(capacity_factor=1.0, min_capacity=0, output_masking=0.5)
    gate = HashGate(2, options)
    torch.manual_seed(0)
    output = gate(torch.randn(10, 2), None, CallContext(token_ids=torch.full((10,), 3)))
    assert sorted(output.routing.kept_E.tolist()) == [0, 5]
    assert output.stats.dropped.item() == 5
    assert set(output.weight_A.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, "needs a context with the ids"),
        (CallContext(), "needs a context with the ids"),
        (CallContext(token_ids=torch.zeros(2, 2)), "4 token ids do not fit 6 tokens"),
    ],
)
def test_hashing_without_fitting_ids_is_refused(context: CallContext | None, message: str) -> None:
    layer = MOELayer(HashGate(4), Experts(2, 3, 4))
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(6, 2), context=context)

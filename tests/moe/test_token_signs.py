"""A gate that sees which token it is."""

from __future__ import annotations

import pytest
import torch

from zcode_plugin.moe import CallContext, Experts, GateOptions, MOELayer, TopKGate
from zcode_plugin.moe.token_signs import SIGNS, token_signs

M, E = 32, 8
# SplitMix64 from seed 0, as its author publishes it: the bits of the first ids.
FIRST = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def gate(**options: object) -> TopKGate:
    torch.manual_seed(3)
    return TopKGate(M, E, GateOptions(capacity_factor=0, **options)).eval()  # type: ignore[arg-type]


def choices(gate: TopKGate, id_T: torch.Tensor, seed: int) -> torch.Tensor:
    """The experts of tokens, whose states are drawn."""
    x_TM = torch.randn(len(id_T), M, generator=torch.Generator().manual_seed(seed))
    return gate(x_TM, None, CallContext(token_ids=id_T)).expert_TK[:, 0]


def test_signs_are_fixed_for_all_time() -> None:
    # A checkpoint is worth nothing once these numbers change.
    wanted = [[1.0 if number >> bit & 1 else -1.0 for bit in range(SIGNS)] for number in FIRST]
    assert token_signs(torch.arange(3)).tolist() == wanted


def test_signs_of_tokens_have_nothing_in_common() -> None:
    sign_TS = token_signs(torch.arange(4000))
    product = (sign_TS @ sign_TS.t()).fill_diagonal_(0)
    # Sums of 64 independent signs: deviation 8; eight million pairs reach about 5.5 times that.
    assert product.std().item() == pytest.approx(8, rel=0.01)
    assert product.abs().max() < 7 * 8


def test_at_first_the_token_decides_and_the_state_may_object() -> None:
    id_T = torch.arange(2000)
    same = {
        sees: (choices(gate(sees_token=sees), id_T, 1) == choices(gate(sees_token=sees), id_T, 2))
        .float()
        .mean()
        .item()
        for sees in (False, True)
    }
    assert same[False] < 2 / E
    assert 0.6 < same[True] < 1
    load_E = choices(gate(sees_token=True), id_T, 1).bincount(minlength=E)
    assert load_E.min() > 2000 / E / 3


def test_gradients_reach_both_parts_of_the_gate() -> None:
    layer = MOELayer(gate(sees_token=True), Experts(M, 4, E))
    layer(torch.randn(50, M), context=CallContext(token_ids=torch.arange(50))).sum().backward()
    grad = layer.gate.wg.weight.grad
    assert grad.shape == (E, M + SIGNS)
    assert (grad[:, :M] != 0).any()
    assert (grad[:, M:] != 0).any()


def test_without_ids_it_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a context with the ids"):
        gate(sees_token=True)(torch.randn(3, M))

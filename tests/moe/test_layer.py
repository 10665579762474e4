"""The layer against a dense reference, and several ranks against one process."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from distributed import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zcode_plugin.moe import Experts, GateOptions, LayerStats, MOELayer, TopKGate

M, F, E = 6, 10, 4


def build(seed: int = 0, first: int = 0, local: int = E, group: object = None) -> MOELayer:
    return build_with(GateOptions(capacity_factor=0), seed, first, local, group)


def build_with(
    options: GateOptions, seed: int = 0, first: int = 0, local: int = E, group: object = None
) -> MOELayer:
    torch.manual_seed(seed)
    gate = TopKGate(M, E, options)
    nn.init.normal_(gate.wg.weight)
    experts = Experts(M, F, local, first=first)
    return MOELayer(gate, experts, group)  # type: ignore[arg-type]


def dense_reference(layer: MOELayer, x_TM: Tensor) -> Tensor:
    """Every expert on every token, weighted by the gate: one einsum, no routing."""
    experts, options = layer.experts, layer.gate.options
    gate_TE = (x_TM @ layer.gate.wg.weight.t()).softmax(1)
    biased_TE = (
        gate_TE if layer.gate.selection_bias is None else gate_TE + layer.gate.selection_bias
    )
    weight_TE = torch.zeros_like(gate_TE).scatter(1, biased_TE.topk(options.k).indices, 1) * gate_TE
    if options.normalize or (options.normalize is None and options.k > 1):
        weight_TE = weight_TE / weight_TE.sum(1, keepdim=True)
    hidden = torch.einsum("tm,efm->tef", x_TM, experts.fc1_weight) + experts.fc1_bias
    output = torch.einsum("tef,emf->tem", hidden.relu(), experts.fc2_weight) + experts.fc2_bias
    return torch.einsum("te,tem->tm", weight_TE, output)


@st.composite
def gate_options(draw: st.DrawFn) -> GateOptions:
    """Every way to choose and weigh that needs no draws and drops nothing."""
    return GateOptions(
        k=draw(st.integers(1, E)),
        capacity_factor=draw(st.sampled_from([0.0, float(E)])),
        token_priority=draw(st.sampled_from(["rts", "position", "gate"])),
        selection_bias=draw(st.booleans()),
        normalize=draw(st.sampled_from([None, True, False])),
        normalize_before_dropping=draw(st.booleans()),
    )


def build_biased(options: GateOptions, seed: int) -> MOELayer:
    layer = build_with(options, seed)
    if layer.gate.selection_bias is not None:
        layer.gate.selection_bias.uniform_(-0.3, 0.3)
    return layer


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), gate_options(), st.integers(0, 2**31))
def test_outputs_and_gradients_equal_the_dense_reference(
    tokens: int, options: GateOptions, seed: int
) -> None:
    layer = build_biased(options, seed).double()
    x_TM = torch.randn(tokens, M, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(tokens, M, dtype=torch.float64)
    leaves = [x_TM, *layer.parameters()]
    expected = dense_reference(layer, x_TM)
    output = layer(x_TM)
    torch.testing.assert_close(output, expected)
    actual_grads = torch.autograd.grad(output, leaves, grad)
    expected_grads = torch.autograd.grad(expected, leaves, grad)
    for actual, wanted in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), gate_options(), st.integers(0, 2**31))
def test_permuting_tokens_permutes_outputs(tokens: int, options: GateOptions, seed: int) -> None:
    layer = build_biased(options, seed)
    x_TM, order = torch.randn(tokens, M), torch.randperm(tokens)
    torch.testing.assert_close(layer(x_TM[order]), layer(x_TM)[order], rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), gate_options(), st.floats(0.1, 1.0), st.integers(0, 2**31))
def test_weights_sum_as_documented(
    tokens: int, options: GateOptions, factor: float, seed: int
) -> None:
    options = replace(options, capacity_factor=factor, min_capacity=0)
    layer = build_biased(options, seed)
    x_TM = torch.randn(tokens, M)
    output = layer.gate(x_TM)
    token_A, weight_A = output.routing.token_A, output.weight_A
    total_T = torch.zeros(tokens).index_add(0, token_A, weight_A)
    choices_T = token_A.bincount(minlength=tokens)
    assert choices_T.max() <= options.k
    assert (output.routing.kept_E <= max(1, math.ceil(options.k * tokens / E * factor))).all()
    whole_T = choices_T == options.k
    score_T = (x_TM @ layer.gate.wg.weight.t()).softmax(1)
    if options.normalize or (options.normalize is None and options.k > 1):
        one_T = total_T[whole_T]
        torch.testing.assert_close(one_T, torch.ones_like(one_T))
        if not options.normalize_before_dropping:
            partly_T = total_T[choices_T > 0]
            torch.testing.assert_close(partly_T, torch.ones_like(partly_T))
        assert (total_T <= 1 + 1e-5).all()
    elif options.k == E:
        torch.testing.assert_close(total_T[whole_T], score_T.sum(1)[whole_T])
    else:
        assert (total_T < 1).all()


def test_padding_and_dropped_tokens_come_out_as_zero() -> None:
    options = GateOptions(capacity_factor=0.5, min_capacity=0, token_priority="position")
    layer = build_with(options)
    x = torch.randn(2, 5, M)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 2:] = True
    output, vector = layer.forward_with_stats(x, mask)
    stats = LayerStats.unpack(vector)
    assert stats.tokens.item() == 7
    zero_rows = (output == 0).all(-1)
    assert zero_rows[mask].all()
    assert int(zero_rows.sum()) == 3 + int(stats.dropped)


@pytest.mark.parametrize("padding", [False, True])
def test_without_statistics_the_output_is_the_same(padding: bool) -> None:
    layer = build_with(GateOptions(k=2, token_priority="position")).eval()
    x = torch.randn(3, 4, M)
    mask = torch.rand(3, 4) < 0.3 if padding else None
    assert torch.equal(layer.forward_without_stats(x, mask), layer.forward_with_stats(x, mask)[0])


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_dtype_and_is_close(dtype: torch.dtype, k: int) -> None:
    layer = build_with(GateOptions(k=k, capacity_factor=0))
    x_TM = torch.randn(32, M)
    expected = layer(x_TM)
    half = deepcopy(layer).to(dtype)
    # The gate sees rounded inputs: compare where its choice stayed the same, nearly everywhere.
    output = half(x_TM.to(dtype))
    assert output.dtype == dtype
    close = torch.isclose(output.float(), expected, atol=0.03, rtol=0.05).all(1)
    assert close.float().mean() > 0.9
    output.float().sum().backward()
    expected.sum().backward()
    for (name, one), (_, other) in zip(
        half.named_parameters(), layer.named_parameters(), strict=True
    ):
        assert one.grad.dtype == dtype, name
        assert torch.cosine_similarity(one.grad.float().flatten(), other.grad.flatten(), 0) > 0.98


def test_activation_checkpointing_recomputes_the_same_routing() -> None:
    options = GateOptions(capacity_factor=0.5, jitter_eps=0.2)
    layer = build_with(options)
    x_TM = torch.randn(64, M, requires_grad=True)

    def grads(checkpointed: bool) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        if checkpointed:
            output = torch.utils.checkpoint.checkpoint(layer, x_TM, use_reentrant=False)
        else:
            output = layer(x_TM)
        return torch.autograd.grad(output.square().sum(), [x_TM, *layer.parameters()])

    for plain, again in zip(grads(False), grads(True), strict=True):
        assert torch.equal(plain, again)


def test_state_dict_names_each_expert() -> None:
    state = build(first=0).state_dict()
    assert sorted(state) == sorted(
        ["gate.wg.weight"]
        + [
            f"experts.{number}.{part}"
            for number in range(E)
            for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        ]
    )
    assert state["experts.2.fc1.weight"].shape == (F, M)


def test_state_dict_round_trip_is_bit_equal() -> None:
    source, target = build(1), build(2)
    target.load_state_dict(source.state_dict())
    for (name, one), (_, other) in zip(
        source.state_dict().items(), target.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_rank_takes_its_experts_out_of_a_whole_file() -> None:
    whole = build(1).experts.state_dict()
    part = Experts(M, F, 2, first=2)
    part.load_state_dict(whole)
    assert torch.equal(part.fc1_weight[0], whole["2.fc1.weight"])
    assert torch.equal(part.fc2_bias[1], whole["3.fc2.bias"])
    assert sorted(part.state_dict())[0] == "2.fc1.bias"


def test_missing_and_misshapen_experts_are_errors() -> None:
    state = build(1).experts.state_dict()
    del state["3.fc1.weight"]
    state["0.fc2.bias"] = torch.zeros(M + 1)
    with pytest.raises(RuntimeError, match=r"3\.fc1\.weight") as error:
        Experts(M, F, E).load_state_dict(state)
    assert "0.fc2.bias has shape (7,), this model needs (6,)" in str(error.value)


def test_experts_start_the_same_however_they_are_spread() -> None:
    torch.manual_seed(5)
    whole = Experts(M, F, E)
    after = torch.rand(1)
    torch.manual_seed(5)
    part = Experts(M, F, 2, first=2)
    assert torch.equal(whole.fc1_weight[2:], part.fc1_weight)
    assert torch.equal(whole.fc2_bias[2:], part.fc2_bias)
    assert torch.equal(torch.rand(1), after)


def test_gate_and_experts_must_agree() -> None:
    with pytest.raises(ValueError, match="knows 4 experts, but 1 ranks hold 3 each"):
        MOELayer(TopKGate(M, E), Experts(M, F, 3))


# Ranks with different numbers of tokens, one with none.
TOKENS = {2: [9, 4], 4: [7, 0, 12, 1]}


def _ranks_share(
    rank: int, world: int, k: int
) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(100)
    x = torch.randn(sum(TOKENS[world]), M).split(TOKENS[world])[rank].requires_grad_()
    torch.manual_seed(200)
    grad = torch.randn(sum(TOKENS[world]), M).split(TOKENS[world])[rank]
    local = E // world
    layer = build_with(
        GateOptions(k=k, capacity_factor=0),
        first=rank * local,
        local=local,
        group=torch.distributed.group.WORLD,
    )
    output = layer(x)
    output.backward(grad)
    assert all(parameter.expert for parameter in layer.experts.parameters())
    grads = {
        f"{rank * local + index}.{name}": gradient
        for name, parameter in layer.experts.named_parameters()
        for index, gradient in enumerate(parameter.grad)
    }
    gate_grad = layer.gate.wg.weight.grad
    torch.distributed.all_reduce(gate_grad)
    return output.detach(), x.grad, grads, {"gate": gate_grad}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("k", [1, 2])
def test_ranks_equal_one_process(world: int, k: int) -> None:
    results = run_ranks(_ranks_share, world, world, k)
    torch.manual_seed(100)
    x = torch.randn(sum(TOKENS[world]), M, requires_grad=True)
    torch.manual_seed(200)
    grad = torch.randn(sum(TOKENS[world]), M)
    layer = build_with(GateOptions(k=k, capacity_factor=0))
    output = layer(x)
    output.backward(grad)
    torch.testing.assert_close(torch.cat([part[0] for part in results]), output.detach())
    torch.testing.assert_close(torch.cat([part[1] for part in results]), x.grad)
    torch.testing.assert_close(results[0][3]["gate"], layer.gate.wg.weight.grad)
    merged = {key: value for part in results for key, value in part[2].items()}
    for name, parameter in layer.experts.named_parameters():
        for index, gradient in enumerate(parameter.grad):
            torch.testing.assert_close(merged[f"{index}.{name}"], gradient)


def _deepcopy_layer(rank: int) -> bool:
    layer = build(first=2 * rank, local=2, group=torch.distributed.group.WORLD)
    twin = deepcopy(layer)
    x = torch.ones(3, M)
    return twin.group is layer.group and torch.equal(twin(x), layer(x))


def test_a_layer_with_a_group_can_be_copied() -> None:
    assert run_ranks(_deepcopy_layer, 2) == [True, True]

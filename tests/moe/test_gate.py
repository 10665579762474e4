"""The gate's choices, weights and losses, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zcode_plugin.moe import GateOptions, LayerStats, TopKGate
from zcode_plugin.moe.gate import sample_further_experts
from zcode_plugin.moe.losses import balance_loss, z_loss
from zcode_plugin.moe.stats import log_values, reduce_log


def gate_with_logits(logits: list[list[float]], **options: object) -> tuple[TopKGate, torch.Tensor]:
    """A gate and an input for which its logits are the given ones."""
    table = torch.tensor(logits)
    gate = TopKGate(table.size(0), table.size(1), GateOptions(**options))  # type: ignore[arg-type]
    with torch.no_grad():
        gate.wg.weight.copy_(table.t())
    return gate, torch.eye(table.size(0))


def log_probabilities(rows: list[list[float]]) -> list[list[float]]:
    return [[math.log(value) for value in row] for row in rows]


def test_top_1_weight_is_the_probability() -> None:
    gate, x_TM = gate_with_logits(log_probabilities([[0.9, 0.1], [0.3, 0.7]]))
    output = gate.eval()(x_TM)
    assert output.routing.token_A.tolist() == [0, 1]
    assert output.routing.kept_E.tolist() == [1, 1]
    torch.testing.assert_close(output.weight_A, torch.tensor([0.9, 0.7]))


def test_top_2_weights_sum_to_one() -> None:
    rows = [[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]
    gate, x_TM = gate_with_logits(log_probabilities(rows), k=2)
    output = gate.eval()(x_TM)
    # By expert: token 0 to experts 0 and 1, token 1 to experts 1 and 2.
    assert output.routing.token_A.tolist() == [0, 0, 1, 1]
    by_pair = dict(
        zip(
            zip(
                output.routing.token_A.tolist(),
                torch.arange(3).repeat_interleave(output.routing.kept_E).tolist(),
                strict=True,
            ),
            output.weight_A.tolist(),
            strict=True,
        )
    )
    expected = {(0, 0): 0.6 / 0.9, (0, 1): 0.3 / 0.9, (1, 1): 0.3 / 0.8, (1, 2): 0.5 / 0.8}
    assert by_pair == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("before", "expected"), [(False, 1.0), (True, 0.6 / 0.9)])
def test_weights_are_normalised_over_kept_or_over_all(before: bool, expected: float) -> None:
    rows = [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]
    gate, x_TM = gate_with_logits(
        log_probabilities(rows),
        k=2,
        capacity_factor=0.6,  # 2 * 2 / 3 * 0.6 -> 1 place in each expert
        min_capacity=0,
        token_priority="position",
        normalize_before_dropping=before,
    )
    output = gate(x_TM)
    assert output.routing.token_A.tolist() == [0, 0]
    expected_first = 0.6 / 0.9
    assert output.weight_A[0].item() == pytest.approx(expected_first, abs=1e-6)
    # A token that loses its second expert keeps weight 1 only when the sum is taken afterwards.
    solo, x_TM = gate_with_logits(
        log_probabilities([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1]]),
        k=2,
        capacity_factor=0.6,
        min_capacity=0,
        token_priority="position",
        normalize_before_dropping=before,
    )
    assert solo(x_TM).weight_A[0].item() == pytest.approx(expected, abs=1e-6)


def test_balance_loss_by_hand() -> None:
    gate_TE = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    loss = balance_loss(gate_TE=gate_TE, expert_T=torch.tensor([0, 0, 1, 0]), keep_T=None)
    # 2 * (mean gate 0.65 * share 0.75 + 0.35 * 0.25)
    assert loss.item() == pytest.approx(2 * (0.65 * 0.75 + 0.35 * 0.25), abs=1e-6)


def test_balance_loss_is_one_when_balanced() -> None:
    gate_TE = torch.full((6, 3), 1 / 3)
    loss = balance_loss(gate_TE=gate_TE, expert_T=torch.tensor([0, 1, 2, 0, 1, 2]), keep_T=None)
    assert loss.item() == pytest.approx(1.0, abs=1e-6)


def test_losses_do_not_see_padding() -> None:
    logits_TE = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    keep_T = torch.tensor([True, True, False, True, False])
    gate_TE, expert_T = logits_TE.softmax(1), logits_TE.argmax(1)
    kept = logits_TE[keep_T]
    torch.testing.assert_close(
        balance_loss(gate_TE=gate_TE, expert_T=expert_T, keep_T=keep_T),
        balance_loss(gate_TE=kept.softmax(1), expert_T=kept.argmax(1), keep_T=None),
    )
    torch.testing.assert_close(
        z_loss(logits_TE=logits_TE, keep_T=keep_T), z_loss(logits_TE=kept, keep_T=None)
    )


def test_z_loss_by_hand() -> None:
    logits_TE = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    expected = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
    assert z_loss(logits_TE=logits_TE, keep_T=None).item() == pytest.approx(expected, abs=1e-6)


def test_gradient_of_the_z_loss_by_hand() -> None:
    logits_TE = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    z_loss(logits_TE=logits_TE, keep_T=None).backward()
    # 2 * logsumexp * softmax, of a mean over two tokens.
    first, second = math.log(2) / 2, (1 + math.log(2)) / 2
    torch.testing.assert_close(logits_TE.grad, torch.tensor([[first] * 2, [second] * 2]))


def test_losses_of_no_token_are_zero() -> None:
    empty = torch.empty(0, 3)
    assert z_loss(logits_TE=empty, keep_T=None).item() == 0
    expert_T = torch.empty(0, dtype=torch.int64)
    assert balance_loss(gate_TE=empty, expert_T=expert_T, keep_T=None).item() == 0


def test_evaluation_is_deterministic_and_drops_nothing() -> None:
    torch.manual_seed(0)
    gate = TopKGate(8, 4, GateOptions(jitter_eps=0.5, capacity_factor=0.1)).eval()
    nn.init.normal_(gate.wg.weight)
    x_TM = torch.randn(100, 8)
    first, second = gate(x_TM), gate(x_TM)
    assert first.routing.token_A.tolist() == second.routing.token_A.tolist()
    assert first.routing.token_A.numel() == 100
    assert first.stats.dropped.item() == 0


def test_jitter_moves_training_only() -> None:
    torch.manual_seed(0)
    gate = TopKGate(8, 4, GateOptions(jitter_eps=0.1, capacity_factor=0.0))
    nn.init.normal_(gate.wg.weight)
    plain = TopKGate(8, 4, GateOptions(capacity_factor=0.0))
    plain.load_state_dict(gate.state_dict())
    x_TM = torch.randn(50, 8)
    noisy = gate(x_TM).stats.z_loss
    assert noisy.item() != plain(x_TM).stats.z_loss.item()
    assert gate.eval()(x_TM).stats.z_loss.item() == plain.eval()(x_TM).stats.z_loss.item()


def test_jitter_multiplies_each_number_by_a_draw_of_its_own() -> None:
    torch.manual_seed(0)
    gate, _ = gate_with_logits(torch.eye(4).tolist(), jitter_eps=0.1, capacity_factor=0)
    scores = gate(torch.ones(1000, 4)).scores
    assert scores is not None
    noise_TM = scores.logits_TE.detach()  # the gate's weight is the identity
    assert 0.9 <= noise_TM.min() < 0.905
    assert 1.095 < noise_TM.max() <= 1.1
    # Uniform: 0.2 / sqrt(12) over tokens, and no correlation between places.
    torch.testing.assert_close(noise_TM.std(0), torch.full((4,), 0.0577), rtol=0.1, atol=0)
    assert (noise_TM.t().corrcoef() - torch.eye(4)).abs().max() < 0.2


def test_logits_start_with_deviation_1() -> None:
    torch.manual_seed(0)
    scores = TopKGate(256, 64)(torch.randn(500, 256)).scores
    assert scores is not None
    assert scores.logits_TE.std().item() == pytest.approx(1, rel=0.1)


def test_gate_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    gate, x_TM = TopKGate(16, 4).eval(), torch.randn(20, 16)
    with torch.autocast("cpu", torch.bfloat16):
        under = gate(x_TM)
    assert torch.equal(under.weight_A, gate(x_TM).weight_A)


def test_of_two_choices_the_first_ones_score_says_who_stays() -> None:
    """First choices take the places; expert 0 has two, of which the surest tokens get one each."""
    rows = [[0.5, 0.45, 0.05], [0.6, 0.1, 0.3], [0.7, 0.2, 0.1]]
    gate, x_TM = gate_with_logits(
        log_probabilities(rows), k=2, capacity_factor=1.0, min_capacity=0, token_priority="gate"
    )
    routing = gate(x_TM).routing
    assert routing.kept_E.tolist() == [2, 2, 1]
    assert sorted(routing.token_A[:2].tolist()) == [1, 2]


def test_gate_is_float32_in_a_half_model() -> None:
    torch.manual_seed(0)
    gate = TopKGate(16, 4).eval()
    nn.init.normal_(gate.wg.weight)
    x_TM = torch.randn(20, 16).bfloat16()
    expected = (x_TM.float() @ gate.wg.weight.bfloat16().float().t()).softmax(1).amax(1)
    output = gate.bfloat16()(x_TM)
    assert output.weight_A.dtype == torch.float32
    weights = torch.empty(20).index_copy(0, output.routing.token_A, output.weight_A)
    torch.testing.assert_close(weights, expected)


def test_statistics() -> None:
    rows = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.5, 0.5]]
    gate, x_TM = gate_with_logits(
        log_probabilities(rows), capacity_factor=1.0, min_capacity=0, token_priority="position"
    )
    padding_T = torch.tensor([False, False, False, True])
    stats = LayerStats.unpack(gate(x_TM, padding_T).stats.pack())
    assert stats.tokens.item() == 3
    assert stats.load_E.tolist() == [3, 0]
    assert stats.dropped.item() == 1  # capacity ceil(3 / 2) = 2
    entropy = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.9, 0.8, 0.7))
    assert stats.entropy.item() == pytest.approx(entropy, abs=1e-5)


def test_logged_statistics() -> None:
    """Means over tokens and layers; the top and bottom are a fifth of the experts, at least one."""
    loads = [[6.0, 3, 1, 0, 0, 0], [2.0, 2, 2, 2, 1, 1]]
    layers = [
        LayerStats(*map(torch.tensor, (balance, 0.5, 10, dropped, entropy)), torch.tensor(load))
        for balance, dropped, entropy, load in ((3.0, 4, 5.0, loads[0]), (1.0, 1, 15.0, loads[1]))
    ]
    sums = log_values([stats.pack() for stats in layers])
    found = reduce_log({name: float(value) for name, value in sums.items()})
    assert found == pytest.approx({
        "moe_gate_loss": 2, "moe_z_loss": 0.5, "entropy_gating": 1, "unused_expert1_count": 1.5,
        "expert1_balance_top": (90 + 40) / 2, "expert1_balance_bottom": (0 + 20) / 2,
        "overflow_expert1": 100 * 5 / 20,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "at least 1"),
        ({"jitter_eps": 1.0}, r"\[0, 1\)"),
        ({"output_masking": 1.0}, r"\[0, 1\)"),
        ({"k": 5}, "top-5"),
        ({"selection_bias": True, "second_expert_policy": "sampling"}, "by score"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopKGate(4, 4, GateOptions(**options))  # type: ignore[arg-type]


def test_sampled_second_experts_follow_the_distribution_over_the_others() -> None:
    draws = 20_000
    torch.manual_seed(0)
    logits_TE = torch.tensor(log_probabilities([[0.5, 0.3, 0.15, 0.05]])).expand(draws, 4)
    expert_TK = sample_further_experts(logits_TE, 3)
    assert (expert_TK[:, 0] == 0).all()
    assert (expert_TK.sort(dim=1).values.diff(dim=1) > 0).all()
    second = expert_TK[:, 1].bincount(minlength=4) / draws
    # 0.3, 0.15 and 0.05 over their sum; binomial deviation at most 0.0035, five of them allowed.
    torch.testing.assert_close(second, torch.tensor([0, 0.6, 0.3, 0.1]), atol=0.0175, rtol=0)
    # The third by the same law among the two that are left.
    third = expert_TK[:, 2].bincount(minlength=4) / draws
    p = {1: 0.6, 2: 0.3, 3: 0.1}
    wanted = [sum(p[a] * p[b] / (1 - p[a]) for a in p if a != b) if b else 0.0 for b in range(4)]
    torch.testing.assert_close(third, torch.tensor(wanted), atol=0.0175, rtol=0)


def test_sampling_acts_in_training_only() -> None:
    rows = log_probabilities([[0.5, 0.3, 0.2]] * 50)
    gate, x_TM = gate_with_logits(
        rows, k=2, second_expert_policy="sampling", capacity_factor=0, eval_capacity_factor=0
    )
    torch.manual_seed(0)
    load_E = gate(x_TM).stats.load_E.tolist()
    assert load_E[0] == 50
    assert load_E[2] > 0
    assert gate.eval()(x_TM).stats.load_E.tolist() == [50, 50, 0]


def test_selection_bias_moves_the_choice_and_not_the_weight() -> None:
    gate, x_TM = gate_with_logits(
        log_probabilities([[0.6, 0.3, 0.1], [0.45, 0.15, 0.4]]), selection_bias=True
    )
    assert gate.selection_bias is not None
    gate.selection_bias.copy_(torch.tensor([-0.1, 0.0, 0.1]))
    output = gate.eval()(x_TM)
    # Biased scores: 0.5 0.3 0.2 and 0.35 0.15 0.5.
    assert output.routing.kept_E.tolist() == [1, 0, 1]
    assert output.routing.token_A.tolist() == [0, 1]
    torch.testing.assert_close(output.weight_A, torch.tensor([0.6, 0.4]))


def test_selection_bias_stays_float32_and_is_in_the_state_dict() -> None:
    gate = TopKGate(4, 3, GateOptions(selection_bias=True))
    assert gate.selection_bias is not None
    gate.selection_bias += torch.tensor([0.001, 0.1234567, -0.001])
    before = gate.selection_bias.clone()
    gate.half()
    assert gate.wg.weight.dtype == torch.float16
    assert gate.selection_bias.dtype == torch.float32
    assert torch.equal(gate.selection_bias, before)
    assert torch.equal(gate.state_dict()["selection_bias"], before)
    assert "selection_bias" not in TopKGate(4, 3).state_dict()


def test_weights_of_another_balance_start_without_bias() -> None:
    source = TopKGate(4, 3)
    target = TopKGate(4, 3, GateOptions(selection_bias=True))
    target.load_state_dict(source.state_dict())
    assert target.selection_bias is not None
    assert target.selection_bias.tolist() == [0, 0, 0]
    biased = TopKGate(4, 3, GateOptions(selection_bias=True))
    TopKGate(4, 3).load_state_dict(biased.state_dict())  # and the reverse: it is left out


def test_output_masking_loses_some_weights_and_scales_the_others() -> None:
    rows = log_probabilities([[0.6, 0.3, 0.1]] * 4000)
    plain, x_TM = gate_with_logits(rows, k=2, capacity_factor=0)
    masked, _ = gate_with_logits(rows, k=2, capacity_factor=0, output_masking=0.2)
    torch.manual_seed(0)
    full_A, weight_A = plain(x_TM).weight_A, masked(x_TM).weight_A
    lost_A = weight_A == 0
    torch.testing.assert_close(weight_A[~lost_A], full_A[~lost_A] / 0.8)
    # 8000 choices: the deviation of the share is 0.0045.
    assert lost_A.float().mean().item() == pytest.approx(0.2, abs=5 * 0.0045)
    # First and second choices of a token are masked independently.
    both = lost_A.view(2, -1).all(0).float().mean().item()
    assert both == pytest.approx(0.04, abs=5 * 0.0031)
    assert torch.equal(masked.eval()(x_TM).weight_A, plain.eval()(x_TM).weight_A)
